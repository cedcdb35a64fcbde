//! When a partition stands aside: it is read to its end, silent for a while, and its broker was there all the while and
//! has just said that nothing more is there. Takes no partition's word for long: a broker that was away may hide anything,
//! and kept its producers from delivering as long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::warn;

use super::core::Core;
use super::feed::Feed;
use super::incoming::{Incoming, Records};
use crate::kafka::source::Partition;
use crate::stream::watermark::PartitionKey;

/// How long a broker may take to answer while nothing else is to be done.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a partition whose broker did not answer is left alone: asking holds up the others.
const ASK_AGAIN: Duration = Duration::from_secs(5);

pub struct Idleness {
    /// Since when each partition is read to its end, as far as its broker was there to say so: none where the broker has
    /// not answered since. A record takes it out.
    silent: BTreeMap<PartitionKey, Option<Instant>>,
    /// Whether a broker answered when last asked.
    broker_answers: bool,
    /// Until when partitions whose broker did not answer are left alone.
    patient_until: Option<Instant>,
}

impl Default for Idleness {
    fn default() -> Self {
        Idleness { silent: BTreeMap::new(), broker_answers: true, patient_until: None }
    }
}

impl Idleness {
    /// Takes note of records that came.
    pub fn heard(&mut self, batch: &impl Records) {
        for message in batch.iter() {
            // Cheap enough per batch of thousands: most are of partitions that are already awake.
            if self.silent.is_empty() {
                break;
            }
            self.silent.remove(&(message.topic().clone(), message.partition()));
        }
    }

    /// Takes note that a partition was read to its end.
    pub fn at_end(&mut self, key: PartitionKey, now: Instant) {
        self.silent.entry(key).or_insert(Some(now));
    }

    pub fn forget(&mut self, key: &PartitionKey) {
        self.silent.remove(key);
    }

    /// Takes every partition for awake, until a broker answers again and the silence after that has lasted: what waits
    /// behind a broker that is away, and in its producers, is not known.
    pub fn wake(&mut self, core: &mut Core) {
        self.silent.values_mut().for_each(|since| *since = None);
        core.wake();
    }

    /// Lets the partitions stand aside that have been silent for `timeout`.
    pub fn set_idle(&mut self, core: &mut Core, source: &impl Feed, timeout: Duration, now: impl Fn() -> Instant) {
        for key in self.ripe(timeout, now()) {
            if core.is_idle(&key) {
                continue;
            }
            match self.ask(core, source, &key, &now) {
                Some(true) => core.set_idle(&key),
                Some(false) => {}
                None => break,
            }
        }
    }

    /// While partitions are silent, sees that a broker is there: one that hangs says nothing for a minute. `topic` is any.
    pub fn probe(&mut self, core: &mut Core, source: &impl Feed, topic: &str, now: impl Fn() -> Instant) {
        if self.silent.is_empty() {
            return;
        }
        let answers = source.answers(topic, PROBE_TIMEOUT);
        if !answers && self.broker_answers {
            warn!("the broker does not answer; no partition counts as idle");
        }
        self.broker_answers = answers;
        if !answers {
            self.wake(core);
        } else if self.patient_until.is_none_or(|until| now() >= until) {
            let unanswered = self.silent.iter().filter(|(_, since)| since.is_none());
            for key in unanswered.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                if self.ask(core, source, &key, &now).is_none() {
                    break;
                }
            }
        }
    }

    /// Asks the broker of a partition whether nothing is there, now: silence may be that of a broker which hangs. Returns
    /// whether the partition may stand aside; none where there was no answer.
    fn ask(&mut self, core: &Core, source: &impl Feed, key: &PartitionKey, now: &impl Fn() -> Instant) -> Option<bool> {
        let Some(held) = core.partitions.find(&key.0, key.1).and_then(|at| core.partitions.get(at)) else {
            self.forget(key);
            return Some(false);
        };
        let partition = Partition { topic: key.0.clone(), partition: key.1 };
        let ends = source.ends_at(&partition, held.next, PROBE_TIMEOUT);
        self.answered(key, ends, now())
    }

    /// Takes note of what a broker said of a partition: whether it ends where it was read to. Returns as [`Self::ask`].
    fn answered(&mut self, key: &PartitionKey, ends: Option<bool>, now: Instant) -> Option<bool> {
        let since = self.silent.entry(key.clone()).or_insert(None);
        match ends {
            None => {
                *since = None;
                self.patient_until = Some(now + ASK_AGAIN);
                None
            }
            Some(true) if since.is_some() => Some(true),
            // The first word after none: what its producers could not deliver has its time from now on.
            Some(_) => {
                *since = Some(now);
                Some(false)
            }
        }
    }

    /// Returns the partitions that have been silent for `timeout`, with a broker there.
    fn ripe(&self, timeout: Duration, now: Instant) -> Vec<PartitionKey> {
        let is_ripe = |since: &Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= timeout);
        self.silent.iter().filter(|(_, since)| is_ripe(since)).map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(8);

    #[test]
    fn silence_counts_only_while_the_broker_is_there() {
        let key: PartitionKey = ("events".into(), 0);
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut idleness = Idleness::default();
        idleness.at_end(key.clone(), at(0));
        assert!(idleness.ripe(TIMEOUT, at(7)).is_empty());
        assert_eq!(idleness.ripe(TIMEOUT, at(8)), std::slice::from_ref(&key));
        assert_eq!(idleness.answered(&key, None, at(8)), None);
        assert!(idleness.ripe(TIMEOUT, at(60)).is_empty(), "no broker said that nothing is there");
        // The first answer may be older than what a producer, who was cut off as long, is about to deliver.
        assert_eq!(idleness.answered(&key, Some(true), at(60)), Some(false));
        assert!(idleness.ripe(TIMEOUT, at(67)).is_empty());
        assert_eq!(idleness.ripe(TIMEOUT, at(68)), std::slice::from_ref(&key));
        assert_eq!(idleness.answered(&key, Some(true), at(68)), Some(true));
    }

    #[test]
    fn a_partition_with_more_to_read_is_not_silent() {
        let key: PartitionKey = ("events".into(), 0);
        let begin = Instant::now();
        let mut idleness = Idleness::default();
        idleness.at_end(key.clone(), begin);
        assert_eq!(idleness.answered(&key, Some(false), begin + TIMEOUT), Some(false));
        assert!(idleness.ripe(TIMEOUT, begin + TIMEOUT * 3 / 2).is_empty());
    }
}
