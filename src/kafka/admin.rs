//! Topics and reachability: makes what is missing, and says why a broker cannot be reached. Never alters or deletes a
//! topic that exists: it is its owner's.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::bindings as ffi;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::topic_partition_list::Offset;
use tracing::info;

use super::context::{DeliveryContext, Observer};
use super::error::{KafkaError, code, hint, is_denial};
use super::settings::Settings;

/// A topic that has to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub partitions: i32,
    /// `None` is the broker's default.
    pub replication: Option<i32>,
    /// Such as `cleanup.policy` = `compact`.
    pub config: BTreeMap<String, String>,
}

/// What [`ensure_topics`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    Created,
    /// It existed, with this many partitions; whatever its configuration, it was left alone.
    Existed {
        partitions: usize,
    },
}

/// What a reachable cluster says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    pub cluster_id: Option<String>,
    /// `host:port` of each broker as the cluster advertises it.
    pub brokers: Vec<String>,
    /// The input topics of the settings that do not exist.
    pub missing: Vec<String>,
}

/// The longest wait for one answer while trying; short, so that the reasons for a failure are seen soon.
const STEP: Duration = Duration::from_millis(500);

/// The pause between two questions about a topic that is coming into being.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes the topics that do not exist; one result per topic, in order.
///
/// A cluster that cannot be administered, as the embedded broker, is asked for the topic in the way that makes it come
/// into being, partitions and configuration being its own choice.
/// Errors: [`KafkaError::Unreachable`], [`KafkaError::Denied`], or [`KafkaError::Refused`] with the broker's reason.
pub fn ensure_topics(settings: &Settings, topics: &[Topic], timeout: Duration) -> Result<Vec<Ensured>, KafkaError> {
    let (probe, metadata) = connect(settings, timeout)?;
    let existing: BTreeMap<&str, usize> = metadata
        .topics()
        .iter()
        .filter(|topic| topic.error().is_none())
        .map(|topic| (topic.name(), topic.partitions().len()))
        .collect();
    let missing: Vec<&Topic> = topics.iter().filter(|topic| !existing.contains_key(&*topic.name)).collect();
    if !missing.is_empty() && has_controller(probe.client(), &metadata, timeout) {
        create(settings, &missing, timeout)?;
    } else {
        missing.iter().try_for_each(|topic| ask_for(probe.client(), topic, timeout))?;
    }
    let ensured = |topic: &Topic| match existing.get(&*topic.name) {
        Some(&partitions) => Ensured::Existed { partitions },
        None => Ensured::Created,
    };
    Ok(topics.iter().map(ensured).collect())
}

/// Asks the cluster who it is, and whether the input topics exist.
///
/// Errors: [`KafkaError::Unreachable`] and [`KafkaError::Denied`], naming the broker with librdkafka's reason and what
/// to look at.
pub fn reach(settings: &Settings, timeout: Duration) -> Result<Reachable, KafkaError> {
    let (probe, metadata) = connect(settings, timeout)?;
    let existing: BTreeSet<&str> =
        metadata.topics().iter().filter(|topic| topic.error().is_none()).map(|topic| topic.name()).collect();
    Ok(Reachable {
        cluster_id: probe.client().fetch_cluster_id(STEP).filter(|id| !id.is_empty()),
        brokers: metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect(),
        missing: settings.topics.iter().filter(|topic| !existing.contains(topic.as_str())).cloned().collect(),
    })
}

/// Connects, and returns the client with what the cluster said of all its topics.
fn connect(settings: &Settings, timeout: Duration) -> Result<(BaseProducer<DeliveryContext>, Metadata), KafkaError> {
    settings.check()?;
    let role = "admin client";
    // A producer, since an admin client of the library serves no error events, and those hold the reasons.
    let probe: BaseProducer<DeliveryContext> = settings
        .admin()
        .create_with_context(DeliveryContext::new(role))
        .map_err(|source| KafkaError::Client { role, source })?;
    let deadline = Instant::now() + timeout;
    let mut reasons = Vec::new();
    loop {
        let step = deadline.saturating_duration_since(Instant::now()).min(STEP);
        let source = match probe.client().fetch_metadata(None, step) {
            Ok(metadata) => return Ok((probe, metadata)),
            Err(source) => source,
        };
        probe.poll(Duration::from_millis(10));
        reasons.extend(probe.context().observer.take_unreachable(&settings.brokers));
        let is_denied = matches!(reasons.last(), Some(KafkaError::Denied { .. }));
        if is_denied || is_denial(code(&source)) || Instant::now() >= deadline {
            let plain = KafkaError::Unreachable {
                brokers: settings.brokers.clone(),
                reason: source.to_string(),
                hint: hint(code(&source)),
            };
            return Err(reasons.pop().unwrap_or(plain));
        }
    }
}

/// Tells whether the cluster has a controller, which is where topics are made. The embedded broker names one that is
/// none of its brokers, and librdkafka would wait for it in vain.
fn has_controller<C: ClientContext>(client: &Client<C>, metadata: &Metadata, timeout: Duration) -> bool {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is alive; the call waits for the answer inside.
    let controller = unsafe { ffi::rd_kafka_controllerid(client.native_ptr(), timeout_ms) };
    metadata.brokers().iter().any(|broker| broker.id() == controller)
}

fn create(settings: &Settings, topics: &[&Topic], timeout: Duration) -> Result<(), KafkaError> {
    let role = "admin client";
    let client: AdminClient<Observer> = settings
        .admin()
        .create_with_context(Observer::new(role))
        .map_err(|source| KafkaError::Client { role, source })?;
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| NewTopic {
            name: &topic.name,
            num_partitions: topic.partitions,
            replication: TopicReplication::Fixed(topic.replication.unwrap_or(-1)),
            config: topic.config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        })
        .collect();
    let options = AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
    let results = match block_on(client.create_topics(&new, &options)) {
        Ok(results) => results,
        Err(source) => return Err(KafkaError::Request { operation: "create topics".into(), source }),
    };
    for result in results {
        match result {
            Ok(topic) => info!(topic, "kafka topic created"),
            // Another instance was faster.
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                let reason = if is_denial(code) { format!("{code}; {}", hint(code)) } else { code.to_string() };
                return Err(KafkaError::Refused { operation: format!("create topic {topic}"), reason });
            }
        }
    }
    Ok(())
}

/// Deletes the records of a partition before an offset.
///
/// Errors: [`KafkaError::Request`] where the broker does not, or may not.
pub fn delete_before(
    settings: &Settings,
    topic: &str,
    partition: i32,
    offset: i64,
    timeout: Duration,
) -> Result<(), KafkaError> {
    let operation = || format!("delete the records of {topic}[{partition}] before {offset}");
    let role = "admin client";
    let client: AdminClient<Observer> = settings
        .admin()
        .create_with_context(Observer::new(role))
        .map_err(|source| KafkaError::Client { role, source })?;
    let mut offsets = TopicPartitionList::new();
    let added = offsets.add_partition_offset(topic, partition, Offset::Offset(offset));
    added.map_err(KafkaError::request(operation()))?;
    let options = AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
    let deleted = block_on(client.delete_records(&offsets, &options)).map_err(KafkaError::request(operation()))?;
    let failed = deleted.elements().iter().find_map(|element| element.error().err());
    failed.map_or(Ok(()), |source| Err(KafkaError::Request { operation: operation(), source }))
}

/// Asks about one topic as a producer does, which makes it on a broker that creates topics on first use.
fn ask_for<C: ClientContext>(client: &Client<C>, topic: &Topic, timeout: Duration) -> Result<(), KafkaError> {
    let deadline = Instant::now() + timeout;
    loop {
        let operation = format!("ask for topic {}", topic.name);
        let metadata = client.fetch_metadata(Some(&topic.name), STEP.min(timeout));
        let metadata = metadata.map_err(KafkaError::request(operation))?;
        if metadata.topics().iter().any(|found| found.name() == topic.name && found.error().is_none()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(KafkaError::TopicMissing { topic: topic.name.clone() });
        }
        thread::park_timeout(PAUSE);
    }
}

/// Waits for a future on this thread. The admin client answers from a thread of its own, so no runtime is needed, and
/// this works within one as well.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
