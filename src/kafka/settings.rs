//! The checked settings of the room, and the librdkafka properties made of them. Never prints a property's value: it
//! may be a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as Rd;

use super::error::KafkaError;

/// How to reach Kafka, and how much of it to hold in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port`, comma-separated.
    pub brokers: String,
    pub group_id: String,
    /// Unique per running instance and stable over its restarts: a second producer with the same id fences the first.
    pub transactional_id: String,
    /// The input topics.
    pub topics: Vec<String>,
    /// librdkafka properties for every client we make, such as `security.protocol`, `sasl.*`, `ssl.*`,
    /// `group.instance.id`. Those on which correctness rests are ours and refused here, see [`Settings::check`].
    pub client: BTreeMap<String, String>,
    /// Most messages in one batch.
    pub batch_messages_max: usize,
    /// How long a batch waits for more after its first message.
    pub batch_linger: Duration,
    /// Most bytes fetched ahead of the batches, all partitions together; one fetch may overshoot it.
    pub prefetch_bytes_max: usize,
    /// How long the broker keeps a transaction open that its producer does not end.
    pub transaction_timeout: Duration,
}

/// The largest record that the transactional producer sends.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Properties that decide whether a record is counted once: not for the user to set, with what sets them instead.
const RESERVED: [(&str, &str); 13] = [
    ("bootstrap.servers", "`brokers`"),
    ("metadata.broker.list", "`brokers`"),
    ("group.id", "`group_id`"),
    ("transactional.id", "`transactional_id`"),
    ("enable.auto.commit", "nothing: offsets are committed with the results"),
    ("enable.auto.offset.store", "nothing: offsets are committed with the results"),
    ("auto.offset.reset", "nothing: lost records stop the stream instead of being skipped"),
    ("enable.partition.eof", "nothing: the end of a partition is always told"),
    ("isolation.level", "nothing: only committed records are read"),
    ("partition.assignment.strategy", "nothing: rebalancing is cooperative"),
    ("enable.idempotence", "nothing: producers are idempotent"),
    ("acks", "nothing: producers wait for all in-sync replicas"),
    ("request.required.acks", "nothing: producers wait for all in-sync replicas"),
];

impl Default for Settings {
    fn default() -> Self {
        Settings {
            brokers: "localhost:9092".into(),
            group_id: "bellwether".into(),
            transactional_id: "bellwether".into(),
            topics: Vec::new(),
            client: BTreeMap::new(),
            batch_messages_max: 4096,
            batch_linger: Duration::from_millis(5),
            prefetch_bytes_max: 32 << 20,
            transaction_timeout: Duration::from_secs(60),
        }
    }
}

/// Shows the names of the client properties, never their values.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("group_id", &self.group_id)
            .field("transactional_id", &self.transactional_id)
            .field("topics", &self.topics)
            .field("client", &self.client.keys().collect::<Vec<_>>())
            .field("batch_messages_max", &self.batch_messages_max)
            .field("batch_linger", &self.batch_linger)
            .field("prefetch_bytes_max", &self.prefetch_bytes_max)
            .field("transaction_timeout", &self.transaction_timeout)
            .finish()
    }
}

impl Settings {
    /// Checks every setting without touching the network, librdkafka's own properties included.
    ///
    /// Refuses empty names, limits out of range, properties that are ours, and properties or values that librdkafka
    /// does not know.
    pub fn check(&self) -> Result<(), KafkaError> {
        for (key, value) in
            [("brokers", &self.brokers), ("group_id", &self.group_id), ("transactional_id", &self.transactional_id)]
        {
            if value.trim().is_empty() {
                return Err(setting(key, "a text that is not empty"));
            }
        }
        if let Some(topic) = self.topics.iter().find(|topic| !is_topic_name(topic)) {
            let expected = format!("1 to 249 of `a-z A-Z 0-9 . _ -`, got `{}`", topic.escape_debug());
            return Err(setting("topics", expected));
        }
        if !(1..=100_000).contains(&self.batch_messages_max) {
            return Err(setting("batch_messages_max", "1 to 100000"));
        }
        if self.batch_linger > Duration::from_secs(1) {
            return Err(setting("batch_linger", "at most one second"));
        }
        if !(1 << 20..1 << 31).contains(&self.prefetch_bytes_max) {
            return Err(setting("prefetch_bytes_max", "1 MiB to 2 GiB"));
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(900)).contains(&self.transaction_timeout) {
            return Err(setting("transaction_timeout", "one second to fifteen minutes"));
        }
        for (key, instead) in RESERVED {
            if self.client.contains_key(key) {
                return Err(setting(key, format!("not to be set under `client`; what sets it is {instead}")));
            }
        }
        for config in [self.consumer(), self.transactional()] {
            config.create_native_config().map_err(refused)?;
        }
        Ok(())
    }

    /// Returns the properties of the group consumer.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            // Not the library's backoff of a second: it would stall the stream whenever the prefetch limit was hit.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100")
            // All partitions are forwarded to one queue, and librdkafka measures the queue it forwards to: so this
            // bounds the whole source, not each partition.
            .set("queued.max.messages.kbytes", (self.prefetch_bytes_max / 1024).to_string())
            .set("fetch.max.bytes", (self.prefetch_bytes_max / 2).clamp(1 << 20, 16 << 20).to_string())
            // A flipped bit must not become a number in someone's percentile; the sum costs far less than decoding.
            .set("check.crcs", "true")
            .set("topic.metadata.refresh.interval.ms", "30000");
        self.add_client(&mut config);
        config
            .set("group.id", &self.group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // librdkafka's batch call takes an end-of-partition event for a record and moves the position past it, so that
            // the first record after the next rebalance would be skipped. The reader finds the end by itself.
            .set("enable.partition.eof", "false")
            .set("isolation.level", "read_committed");
        // With the newer group protocol the broker assigns, and naming a strategy is an error.
        if self.client.get("group.protocol").is_none_or(|protocol| protocol == "classic") {
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        config
    }

    /// Returns the properties of a reader of whole topics that belongs to no group.
    pub(super) fn tail(&self) -> ClientConfig {
        let mut config = self.consumer();
        // librdkafka assigns partitions only where a group is named; it is never joined, nothing is ever committed.
        config.set("group.id", format!("{}-tail", self.group_id)).set("auto.offset.reset", "earliest");
        config.remove("group.instance.id");
        config
    }

    /// Returns the properties of a plain producer: idempotent, tuned for throughput.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "131072");
        self.add_client(&mut config);
        config.set("enable.idempotence", "true").set("acks", "all");
        config
    }

    /// Returns the properties of the transactional producer.
    pub(super) fn transactional(&self) -> ClientConfig {
        let mut config = self.producer();
        let timeout_ms = self.transaction_timeout.as_millis().to_string();
        config
            // A commit waits for its last record anyway, so lingering buys little and costs that much latency.
            .set("linger.ms", self.client.get("linger.ms").map_or("1", String::as_str))
            .set("transactional.id", &self.transactional_id)
            // What a topic takes is the broker's to say.
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.timeout.ms", &timeout_ms);
        config
    }

    /// Returns the properties of a client that only administers.
    pub(super) fn admin(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.add_client(&mut config);
        config
    }

    fn add_client(&self, config: &mut ClientConfig) {
        // Errors come to us as events, with their reasons; the log's copy of them would say everything twice.
        let is_debugging = self.client.contains_key("debug");
        config.set_log_level(if is_debugging { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        config.set("log.connection.close", "false");
        config.set("client.id", "bellwether");
        for (key, value) in &self.client {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
    }
}

fn setting(key: &str, expected: impl Into<String>) -> KafkaError {
    KafkaError::Setting { key: key.into(), expected: expected.into() }
}

/// Turns librdkafka's refusal of a property into ours, without the value, which may be a secret.
fn refused(error: Rd) -> KafkaError {
    match error {
        Rd::ClientConfig(_, description, key, value) => {
            let reason = if value.is_empty() { description } else { description.replace(&value, "…") };
            setting(&key, format!("a property and a value that librdkafka knows, it said: {reason}"))
        }
        source => KafkaError::Client { role: "client", source },
    }
}

fn is_topic_name(name: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_legal)
}
