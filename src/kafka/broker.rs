//! A broker inside this process, for the demo, benchmarks and tests: librdkafka's mock cluster.
//!
//! It speaks the protocol but proves nothing about a real cluster: what a transaction writes is visible at once and
//! even after an abort, offsets sent to a transaction are accepted and forgotten, and a partition keeps only its last
//! 5 MiB or 100,000 records.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::bindings as ffi;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer as _};

use super::error::KafkaError;
use super::settings::Settings;

/// The id that stands for all brokers of the cluster.
const ALL: i32 = -1;

/// A cluster of one broker on a free port of localhost. Gone when dropped, with all it holds.
pub struct EmbeddedBroker {
    /// The cluster lives inside this client.
    owner: BaseProducer,
    bootstrap_servers: String,
}

impl EmbeddedBroker {
    /// Starts a broker with `topics`, each with its number of partitions. Other topics come into being with four
    /// partitions when first written to.
    pub fn start(topics: &[(&str, i32)]) -> Result<Self, KafkaError> {
        let failed = |source| KafkaError::Client { role: "embedded broker", source };
        let owner: BaseProducer<DefaultProducerContext> = ClientConfig::new()
            .set("client.id", "embedded-broker")
            .set("test.mock.num.brokers", "1")
            .create()
            .map_err(failed)?;
        let cluster = owner.client().mock_cluster().ok_or_else(|| KafkaError::Refused {
            operation: "start the embedded broker".into(),
            reason: "librdkafka made no mock cluster".into(),
        })?;
        for (topic, partitions) in topics {
            let operation = format!("create topic {topic} in the embedded broker");
            cluster.create_topic(topic, *partitions, 1).map_err(KafkaError::request(operation))?;
        }
        let bootstrap_servers = cluster.bootstrap_servers();
        drop(cluster);
        // A real broker waits three seconds for more members before a new group starts; here nobody else will come.
        // SAFETY: the client is alive and holds a mock cluster, as it has just answered for one.
        unsafe {
            let cluster = ffi::rd_kafka_handle_mock_cluster(owner.client().native_ptr());
            ffi::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
        Ok(EmbeddedBroker { owner, bootstrap_servers })
    }

    /// Returns `host:port`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Returns settings that reach this broker.
    ///
    /// Their session is short: to rebalance a group that has or had members, this broker takes a second less than that.
    pub fn settings(&self, group_id: &str, topics: &[&str]) -> Settings {
        let client = [("session.timeout.ms", "3000"), ("heartbeat.interval.ms", "300")];
        Settings {
            brokers: self.bootstrap_servers.clone(),
            group_id: group_id.into(),
            transactional_id: group_id.into(),
            topics: topics.iter().map(|topic| topic.to_string()).collect(),
            client: client.map(|(key, value)| (key.to_string(), value.to_string())).into(),
            ..Settings::default()
        }
    }

    /// Cuts all connections and refuses new ones.
    pub fn take_down(&self) -> Result<(), KafkaError> {
        self.with_cluster("take the embedded broker down", |cluster| cluster.broker_down(ALL))
    }

    /// Accepts connections again; records and groups are as they were.
    pub fn bring_up(&self) -> Result<(), KafkaError> {
        self.with_cluster("bring the embedded broker up", |cluster| cluster.broker_up(ALL))
    }

    /// Answers every request this much later.
    pub fn delay(&self, by: Duration) -> Result<(), KafkaError> {
        self.with_cluster("slow the embedded broker down", |cluster| cluster.broker_round_trip_time(ALL, by))
    }

    /// Answers the next requests of a kind with these errors, one each.
    #[cfg(test)]
    pub(super) fn fail_next(
        &self,
        request: rdkafka::types::RDKafkaApiKey,
        errors: &[rdkafka::types::RDKafkaRespErr],
    ) -> Result<(), KafkaError> {
        self.with_cluster("inject errors", |cluster| {
            cluster.request_errors(request, errors);
            Ok(())
        })
    }

    fn with_cluster(
        &self,
        operation: &'static str,
        call: impl FnOnce(&rdkafka::mocking::MockCluster<'_, DefaultProducerContext>) -> rdkafka::error::KafkaResult<()>,
    ) -> Result<(), KafkaError> {
        // Also serves what the owner's own connections have logged, which nobody else does.
        self.owner.poll(Duration::ZERO);
        let cluster = self.owner.client().mock_cluster();
        let cluster = cluster.expect("a client started with a mock cluster keeps it until it is dropped");
        call(&cluster).map_err(KafkaError::request(operation))
    }
}
