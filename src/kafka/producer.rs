//! A plain producer for what needs no transaction: the simulated fleet, receivers, benchmarks, tests. Idempotent and
//! fast; does not promise delivery before [`Producer::flush`] says so.

use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use super::context::DeliveryContext;
use super::error::{KafkaError, code};
use super::settings::Settings;
use super::sink::headers;

/// How long [`Producer::send`] waits for room before it gives up.
const ROOM_TIMEOUT: Duration = Duration::from_secs(30);
/// The wait between two tries at a full queue.
const STEP: Duration = Duration::from_millis(1);

/// A producer with a thread that serves its reports. May be shared.
pub struct Producer(ThreadedProducer<DeliveryContext>);

impl Producer {
    /// Makes a producer; connects in the background.
    pub fn open(settings: &Settings) -> Result<Producer, KafkaError> {
        settings.check()?;
        let role = "producer";
        let context = DeliveryContext::new(role);
        let producer = settings.producer().create_with_context(context);
        producer.map(Producer).map_err(|source| KafkaError::Client { role, source })
    }

    /// Hands a record to librdkafka, which sends it with others a moment later; waits while its queue is full.
    ///
    /// `partition`: `None` goes by the hash of the key, or anywhere without one. `timestamp_ms`: `None` is now.
    /// Errors: [`KafkaError::Delivery`] for a record that can never be sent, or when the queue stayed full.
    pub fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        header_pairs: &[(&str, &[u8])],
        timestamp_ms: Option<i64>,
    ) -> Result<(), KafkaError> {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic);
        record.partition = partition;
        record.key = key;
        record.payload = payload;
        record.timestamp = timestamp_ms;
        record.headers = headers(header_pairs.iter().copied());
        let mut full_since = None;
        loop {
            self.0.context().sent();
            let Err((error, returned)) = self.0.send(record) else { return Ok(()) };
            self.0.context().unsent();
            let waited = full_since.get_or_insert_with(Instant::now).elapsed();
            if code(&error) != Code::QueueFull || waited > ROOM_TIMEOUT {
                return Err(KafkaError::Delivery { failed: 1, topic: topic.into(), source: error });
            }
            record = returned;
            self.0.poll(STEP);
        }
    }

    /// Waits until every record sent so far is durable.
    ///
    /// Errors: [`KafkaError::Delivery`] names the first of those that failed since the last flush,
    /// [`KafkaError::Timeout`] where some are still under way; they may yet arrive.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        let context = self.0.context();
        if !context.wait_settled(timeout) {
            return Err(KafkaError::Timeout { operation: "deliver the records sent so far".into(), after: timeout });
        }
        context.take_failures()
    }
}
