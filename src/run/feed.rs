//! Where the core's events come from, as far as the conductor asks: Kafka, or a log in memory where the whole core is
//! simulated. Decides nothing.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::Result;

use super::incoming::Records;
use crate::kafka::batch::Batch;
use crate::kafka::error::KafkaError;
use crate::kafka::source::{Partition, Source, SourceEvent};

/// A member of a consumer group, seen from the core's thread. What is not told is as at [`Source`].
pub trait Feed {
    type Batch: Records;

    /// Returns the next event, where one comes within `patience`.
    fn next(&mut self, patience: Duration) -> Result<Option<SourceEvent<Self::Batch>>>;
    fn cluster_id(&self, timeout: Duration) -> Option<String>;
    fn partition_count(&self, topic: &str, timeout: Duration) -> Result<usize, KafkaError>;
    fn ends_at(&self, partition: &Partition, position: i64, timeout: Duration) -> Option<bool>;
    fn answers(&self, topic: &str, timeout: Duration) -> bool;
    fn lag(&self) -> Vec<(Partition, i64)>;
    fn stop(self);
}

/// The feed from Kafka. Stopped when dropped.
pub struct KafkaFeed {
    // Dropped in this order: a source that ends may still have something to say.
    pub source: Source,
    pub events: Receiver<SourceEvent>,
}

impl Feed for KafkaFeed {
    type Batch = Batch;

    fn next(&mut self, patience: Duration) -> Result<Option<SourceEvent>> {
        match self.events.recv_timeout(patience) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the source has stopped"),
        }
    }

    fn cluster_id(&self, timeout: Duration) -> Option<String> {
        self.source.cluster_id(timeout)
    }

    fn partition_count(&self, topic: &str, timeout: Duration) -> Result<usize, KafkaError> {
        self.source.partition_count(topic, timeout)
    }

    fn ends_at(&self, partition: &Partition, position: i64, timeout: Duration) -> Option<bool> {
        self.source.ends_at(partition, position, timeout)
    }

    fn answers(&self, topic: &str, timeout: Duration) -> bool {
        self.source.answers(topic, timeout)
    }

    fn lag(&self) -> Vec<(Partition, i64)> {
        self.source.lag()
    }

    fn stop(self) {
        self.source.stop();
    }
}
