//! Watermarks: how far event time has come, per partition, and over all that are not idle. Reads no clock: `run` says
//! when a partition is idle.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::time::EventTime;

/// A partition of an input topic.
pub type PartitionKey = (Arc<str>, i32);

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    newest: Option<EventTime>,
    idle: bool,
}

/// The event time of one source, over its partitions.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    partitions: BTreeMap<PartitionKey, Progress>,
}

impl Clock {
    /// Takes a partition into account. Until its first row, or until it is found idle, it holds the clock where it is.
    pub fn add(&mut self, partition: PartitionKey) {
        self.partitions.entry(partition).or_default();
    }

    pub fn remove(&mut self, partition: &PartitionKey) {
        self.partitions.remove(partition);
    }

    /// Tells of the newest row of a partition; wakes the partition where it was idle.
    pub fn observe(&mut self, partition: &PartitionKey, newest: EventTime) {
        if let Some(progress) = self.partitions.get_mut(partition) {
            progress.newest = progress.newest.max(Some(newest));
            progress.idle = false;
        }
    }

    /// Lets a partition step aside: it is read to its end and nothing has come for a while.
    pub fn set_idle(&mut self, partition: &PartitionKey) {
        if let Some(progress) = self.partitions.get_mut(partition) {
            progress.idle = true;
        }
    }

    /// Tells whether a partition stands aside.
    pub fn is_idle(&self, partition: &PartitionKey) -> bool {
        self.partitions.get(partition).is_some_and(|progress| progress.idle)
    }

    /// Tells whether any partition stands aside.
    pub fn any_idle(&self) -> bool {
        self.partitions.values().any(|progress| progress.idle)
    }

    /// Returns the time of the newest row of a partition.
    pub fn newest(&self, partition: &PartitionKey) -> Option<EventTime> {
        self.partitions.get(partition)?.newest
    }

    /// Takes every partition into account again: what was known of their ends is no longer so.
    pub fn wake(&mut self) {
        self.partitions.values_mut().for_each(|progress| progress.idle = false);
    }

    /// Returns the least of the newest times over all partitions, whether they stand aside or not: what every partition has
    /// promised not to fall behind. None while one has promised nothing.
    pub fn promised(&self) -> Option<EventTime> {
        self.partitions.values().map(|progress| progress.newest).min().flatten()
    }

    /// Tells whether there is no partition.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Tells whether nothing can be expected of this source: it has no partition, or all have stepped aside.
    pub fn is_resting(&self) -> bool {
        self.partitions.values().all(|progress| progress.idle)
    }

    /// Returns a partition that has given no row and does not step aside.
    pub fn silent(&self) -> Option<PartitionKey> {
        let silent = self.partitions.iter().find(|(_, progress)| !progress.idle && progress.newest.is_none());
        silent.map(|(partition, _)| partition.clone())
    }

    /// Returns the least of the newest times over the partitions that are not idle; where all are idle, the greatest
    /// time that was ever seen. None while a partition that is not idle has given no row.
    pub fn low(&self) -> Option<EventTime> {
        let awake: Vec<&Progress> = self.partitions.values().filter(|progress| !progress.idle).collect();
        if awake.is_empty() {
            return self.partitions.values().filter_map(|progress| progress.newest).max();
        }
        awake.iter().map(|progress| progress.newest).min().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> EventTime {
        EventTime::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn the_slowest_partition_holds_the_clock_until_it_is_idle() {
        let (a, b): (PartitionKey, PartitionKey) = (("t".into(), 0), ("t".into(), 1));
        let mut clock = Clock::default();
        clock.add(a.clone());
        clock.add(b.clone());
        clock.observe(&a, at(100));
        assert_eq!(clock.low(), None, "b was never seen");
        clock.set_idle(&b);
        assert_eq!(clock.low(), Some(at(100)));
        clock.observe(&b, at(50));
        assert_eq!(clock.low(), Some(at(50)), "b woke up behind");
        clock.set_idle(&a);
        clock.set_idle(&b);
        assert_eq!(clock.low(), Some(at(100)), "nobody is left to wait for");
    }

    #[test]
    fn an_older_row_does_not_turn_the_clock_back() {
        let a: PartitionKey = ("t".into(), 0);
        let mut clock = Clock::default();
        clock.add(a.clone());
        clock.observe(&a, at(100));
        clock.observe(&a, at(10));
        assert_eq!(clock.low(), Some(at(100)));
    }
}
