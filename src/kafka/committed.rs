//! What a group has committed, asked from outside of it. Joins no group and commits nothing.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::bootstrap::Bootstrap;
use super::context::Observer;
use super::error::KafkaError;
use super::native::elements;
use super::settings::Settings;

const ROLE: &str = "observer of a group";

/// A client that asks for the committed offsets of the settings' group.
pub struct Committed {
    consumer: BaseConsumer<Observer>,
    bootstrap: Bootstrap,
}

impl Committed {
    /// Makes a client; connects in the background.
    pub fn open(settings: &Settings) -> Result<Committed, KafkaError> {
        let consumer = settings
            .consumer()
            .create_with_context(Observer::new(ROLE))
            .map_err(|source| KafkaError::Client { role: ROLE, source })?;
        Ok(Committed { consumer, bootstrap: Bootstrap::new(ROLE, &settings.brokers) })
    }

    /// Returns the metadata committed with the offset of each partition of a topic that has one.
    ///
    /// Errors: no answer within `timeout`.
    pub fn metadata(
        &mut self,
        topic: &str,
        partitions: i32,
        timeout: Duration,
    ) -> Result<HashMap<i32, String>, KafkaError> {
        // Serves what librdkafka has to say; there are no messages, as nothing is subscribed to.
        let _ = self.consumer.poll(Duration::ZERO);
        self.bootstrap.mend(self.consumer.client().native_ptr());
        let mut list = TopicPartitionList::with_capacity(partitions as usize);
        list.add_partition_range(topic, 0, partitions - 1);
        let failed = KafkaError::request("ask for the committed offsets of another group");
        let list = self.consumer.committed_offsets(list, timeout).map_err(failed)?;
        let known = elements(&list).into_iter().filter(|element| element.offset >= 0);
        Ok(known.map(|element| (element.partition, element.metadata)).collect())
    }
}
