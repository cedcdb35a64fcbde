//! A plain reader of whole topics from their beginning, outside of any group: for the demo's account, reports, tests.
//! Commits nothing and keeps no position beyond its own life.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as Rd;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::Offset;
use tracing::{debug, warn};

use super::context::Observer;
use super::error::KafkaError;
use super::settings::Settings;

/// How long to wait for the broker's account of the topics.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// A message, copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedMessage {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A reader at some position of all partitions of its topics.
pub struct Tail {
    consumer: BaseConsumer<Observer>,
}

impl Tail {
    /// Opens a reader of committed records at the beginning of `topics`.
    ///
    /// Errors: [`KafkaError::TopicMissing`]; [`KafkaError::Unreachable`] with the reason.
    pub fn open(settings: &Settings, topics: &[&str]) -> Result<Tail, KafkaError> {
        settings.check()?;
        let role = "reader";
        let consumer: BaseConsumer<Observer> = settings
            .tail()
            .create_with_context(Observer::new(role))
            .map_err(|source| KafkaError::Client { role, source })?;
        let mut list = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT).map_err(|source| {
                let _ = consumer.poll(Duration::ZERO);
                let unreachable = consumer.context().take_unreachable(&settings.brokers);
                unreachable.unwrap_or_else(|| KafkaError::request(format!("ask for topic {topic}"))(source))
            })?;
            let found = metadata.topics().iter().find(|found| found.name() == *topic && found.error().is_none());
            let found = found.ok_or_else(|| KafkaError::TopicMissing { topic: topic.to_string() })?;
            for partition in found.partitions() {
                list.add_partition_offset(topic, partition.id(), Offset::Beginning)
                    .map_err(KafkaError::request("set the start of a partition"))?;
            }
        }
        consumer.assign(&list).map_err(KafkaError::request("assign the partitions of the topics"))?;
        Ok(Tail { consumer })
    }

    /// Returns the next message; `None` where none came before the deadline.
    pub fn next(&mut self, deadline: Instant) -> Option<OwnedMessage> {
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            match self.consumer.poll(wait) {
                Some(Ok(message)) => return Some(copy(&message)),
                Some(Err(Rd::PartitionEOF(_))) => {}
                Some(Err(error)) => warn!(%error, "kafka reader retries"),
                None => {}
            }
            for (code, reason) in self.consumer.context().take_errors() {
                debug!(%code, reason, "librdkafka reported an error it handles itself");
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }
}

fn copy(message: &BorrowedMessage<'_>) -> OwnedMessage {
    let headers = message.headers().map(|headers| {
        let copy =
            |header: rdkafka::message::Header<'_, &[u8]>| (header.key.to_string(), header.value.map(<[u8]>::to_vec));
        headers.iter().map(copy).collect()
    });
    OwnedMessage {
        topic: message.topic().to_string(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
