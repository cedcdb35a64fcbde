//! When a partition stands aside: it is read to its end, silent for a while, and a broker has just said that nothing more
//! is there. Takes no partition's word for long: a broker that was away may hide anything.

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

pub struct Idleness {
    /// When each partition was last caught up with; a record takes it out.
    caught_up: BTreeMap<PartitionKey, Instant>,
    /// Whether a broker answered when last asked.
    broker_answers: bool,
}

impl Default for Idleness {
    fn default() -> Self {
        Idleness { caught_up: BTreeMap::new(), broker_answers: true }
    }
}

impl Idleness {
    /// Takes note of records that came.
    pub fn heard(&mut self, batch: &impl Records) {
        for message in batch.iter() {
            // Cheap enough per batch of thousands: most are of partitions that are already awake.
            if self.caught_up.is_empty() {
                break;
            }
            self.caught_up.remove(&(message.topic().clone(), message.partition()));
        }
    }

    /// Takes note that a partition was read to its end.
    pub fn at_end(&mut self, key: PartitionKey, now: Instant) {
        self.caught_up.entry(key).or_insert(now);
    }

    pub fn forget(&mut self, key: &PartitionKey) {
        self.caught_up.remove(key);
    }

    /// Takes every partition for awake: what waits behind a broker that was away is not known.
    pub fn wake(&mut self, core: &mut Core, now: Instant) {
        self.caught_up.values_mut().for_each(|since| *since = now);
        core.wake();
    }

    /// Lets the partitions stand aside that have been silent for `timeout`.
    pub fn set_idle(&mut self, core: &mut Core, source: &impl Feed, timeout: Duration, now: impl Fn() -> Instant) {
        let at = now();
        let silent = self.caught_up.iter().filter(|(_, since)| at.duration_since(**since) >= timeout);
        let ripe: Vec<PartitionKey> = silent.map(|(partition, _)| partition.clone()).collect();
        for key in ripe {
            let Some(at) = core.partitions.find(&key.0, key.1) else { continue };
            let next = core.partitions.get(at).map_or(0, |partition| partition.next);
            if core.is_idle(&key) {
                continue;
            }
            // Silence may be that of a broker which hangs: that nothing is there has to be said now.
            let partition = Partition { topic: key.0.clone(), partition: key.1 };
            if source.ends_at(&partition, next, PROBE_TIMEOUT) {
                core.set_idle(&key);
            } else {
                self.caught_up.insert(key, now());
            }
        }
    }

    /// While partitions stand aside, sees that a broker is there: one that hangs says nothing for a minute. `topic` is any.
    pub fn probe(&mut self, core: &mut Core, source: &impl Feed, topic: &str, now: impl Fn() -> Instant) {
        if !core.any_idle() {
            return;
        }
        let answers = source.answers(topic, PROBE_TIMEOUT);
        if !answers && self.broker_answers {
            warn!("the broker does not answer; partitions no longer count as idle");
        }
        self.broker_answers = answers;
        if !answers {
            self.wake(core, now());
        }
    }
}
