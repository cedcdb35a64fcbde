//! Where each assigned partition stands: what is read, and up to where each path has dealt with it before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::kafka::sink::Outgoing;
use crate::model::time::EventTime;
use crate::store::columns::LateRow;
use crate::stream::watermark::PartitionKey;

/// Up to where a partition was dealt with before this run, by each path. A path passes over what is below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DoneBefore {
    /// Samples or events in the store, and so in the windows rebuilt from it.
    pub stored: i64,
    pub rejected: i64,
    pub late: i64,
    /// Dead letters sent.
    pub effects: i64,
    /// Partial states sent; none where this process closes the windows itself, and has them out of the store.
    pub gathered: Option<i64>,
}

impl DoneBefore {
    /// Tells whether a record is in the store.
    pub fn has_stored(&self, offset: i64) -> bool {
        offset < self.stored
    }

    /// Tells whether a record is in the windows.
    pub fn has_windowed(&self, offset: i64) -> bool {
        offset < self.gathered.unwrap_or(self.stored)
    }
}

/// The assigned partitions, for those who look at the store from other threads.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<Mutex<BTreeMap<PartitionKey, HeldPartition>>>);

/// An assigned partition, as the store knows it.
#[derive(Clone, Debug)]
pub struct HeldPartition {
    pub key: PartitionKey,
    /// Its name in the store's transactions.
    pub app: String,
    /// The table that its records go to.
    pub table: &'static str,
}

impl Held {
    pub fn hold(&self, partition: HeldPartition) {
        self.lock().insert(partition.key.clone(), partition);
    }

    pub fn let_go(&self, key: &PartitionKey) {
        self.lock().remove(key);
    }

    pub fn list(&self) -> Vec<HeldPartition> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionKey, HeldPartition>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of a partition that tell its topic from one made again under its name.
pub struct StoredAs {
    /// In the store's transactions.
    pub app: String,
    pub topic_id: String,
}

/// An assigned partition.
#[derive(Clone, Debug)]
pub struct Partition {
    pub key: PartitionKey,
    /// Index of its input.
    pub input: usize,
    /// Its name in the store's transactions.
    pub app: String,
    /// The id of its topic.
    pub topic_id: String,
    pub done_before: DoneBefore,
    /// Late rows by the offset of their record: stored by an earlier run, and sent once that record is read again.
    pub unsent: BTreeMap<i64, Vec<Outgoing>>,
    /// Late rows that an earlier run stored without their records, by offset; none where rows that are judged anew are not
    /// to be noted at all.
    pub late_before: Option<BTreeMap<i64, Vec<LateRow>>>,
    /// The next offset to be read.
    pub next: i64,
    /// The greatest event time among the records of the batch in hand.
    pub newest: Option<EventTime>,
    /// Where this process only gathers: the time that no row of the partition falls behind any more, else it is late.
    pub promised: Option<EventTime>,
    /// Whether it was told to stand aside, together with the promise.
    pub told_idle: bool,
}

impl Partition {
    /// Tells whether a row was in time for an earlier run, which came further than its records were stored, and is late now.
    pub fn is_newly_late(&self, row: &LateRow) -> bool {
        let Some(before) = &self.late_before else { return false };
        !before.get(&row.offset).into_iter().flatten().any(|known| known.is_same_row(row))
    }
}

/// The partitions this instance reads.
#[derive(Debug, Default)]
pub struct Partitions {
    all: Vec<Option<Partition>>,
    by_key: HashMap<PartitionKey, usize>,
}

impl Partitions {
    /// Takes a partition up, in place of what was known of it.
    pub fn insert(&mut self, partition: Partition) {
        let key = partition.key.clone();
        match self.by_key.get(&key) {
            Some(&at) => self.all[at] = Some(partition),
            None => {
                self.by_key.insert(key, self.all.len());
                self.all.push(Some(partition));
            }
        }
    }

    pub fn remove(&mut self, key: &PartitionKey) {
        if let Some(at) = self.by_key.remove(key) {
            self.all[at] = None;
        }
    }

    pub fn find(&self, topic: &Arc<str>, partition: i32) -> Option<usize> {
        self.by_key.get(&(topic.clone(), partition)).copied()
    }

    pub fn of_mut(&mut self, key: &PartitionKey) -> Option<&mut Partition> {
        self.find(&key.0, key.1).and_then(|at| self.get_mut(at))
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut Partition> {
        self.all.get_mut(at)?.as_mut()
    }

    pub fn get(&self, at: usize) -> Option<&Partition> {
        self.all.get(at)?.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.all.iter().flatten()
    }
}

/// Finds the partitions of records, which mostly come in runs: without a look into the map where one is as the last.
#[derive(Default)]
pub struct Finder(Option<(Arc<str>, i32, usize)>);

impl Finder {
    pub fn find(&mut self, partitions: &Partitions, topic: &Arc<str>, partition: i32) -> Option<usize> {
        match &self.0 {
            Some((last, number, at)) if *number == partition && Arc::ptr_eq(last, topic) => Some(*at),
            _ => {
                let at = partitions.find(topic, partition)?;
                self.0 = Some((topic.clone(), partition, at));
                Some(at)
            }
        }
    }
}

/// What is committed with the offsets of the effect path: the watermark through which effects were emitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Emitted {
    #[serde(rename = "w")]
    pub through_micros: i64,
    /// The id of the topic the offset is of: one made again under its name begins anew.
    #[serde(rename = "t", default)]
    pub topic_id: String,
    /// Tells the flush from every other: its offsets alone may be those of the one before, where partitions rested.
    #[serde(rename = "n", default)]
    pub flush: i64,
    /// Where instances share the work: of an input's partition, the time it has promised not to fall behind.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub promised_micros: Option<i64>,
    /// Of the topic of partial states: the first offset that open windows are made of.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub needs_from: Option<i64>,
    /// Of the topic of partial states: how far metrics and events have come by the partitions that do not stand aside.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub frontiers_micros: Option<[Option<i64>; 2]>,
}

impl Emitted {
    /// Numbers the flush after `last`: by the time of day, as another process goes on with the same offsets.
    pub fn next_flush(last: i64, time_of_day: EventTime) -> i64 {
        time_of_day.as_micros().max(last + 1)
    }

    pub fn through(&self) -> EventTime {
        EventTime::from_micros(self.through_micros)
    }

    /// Reads what was committed; none where nothing or something else was.
    pub fn parse(metadata: &str) -> Option<Emitted> {
        serde_json::from_str(metadata).ok()
    }

    pub fn to_metadata(&self) -> String {
        serde_json::to_string(self).expect("a number is valid JSON")
    }
}
