//! What has to be known of a partition before it is read: its topic's id, the group's committed offset with metadata,
//! and the ends of its log. Asks the broker; never retries by itself and never guesses an answer.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as ffi;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as Rd, RDKafkaErrorCode as Code};

use super::context::MemberContext;
use super::error::KafkaError;
use super::native::{Native, elements, name, text};
use super::source::{Assigned, Partition};

/// How long each question to the broker may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks for all there is to know of `partitions`, in their order.
pub(super) fn assigned(
    consumer: &BaseConsumer<MemberContext>,
    partitions: &[Partition],
) -> Result<Vec<Assigned>, KafkaError> {
    let committed = committed(consumer, partitions)?;
    let mut topics: Vec<&str> = partitions.iter().map(|p| &*p.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    let ids = topic_ids(consumer, &topics)?;
    let describe = |partition: &Partition| {
        let (low, high) = consumer
            .fetch_watermarks(&partition.topic, partition.partition, TIMEOUT)
            .map_err(KafkaError::request(format!("ask for the ends of {partition}")))?;
        let (committed, metadata) = committed.get(partition).cloned().unwrap_or_default();
        let topic_id = ids.get(&*partition.topic).cloned().unwrap_or_else(|| partition.topic.to_string());
        let topic = partition.topic.clone();
        Ok(Assigned { topic, topic_id, partition: partition.partition, committed, metadata, low, high })
    };
    partitions.iter().map(describe).collect()
}

pub(super) type Committed = HashMap<Partition, (Option<i64>, String)>;

pub(super) fn committed(
    consumer: &BaseConsumer<MemberContext>,
    partitions: &[Partition],
) -> Result<Committed, KafkaError> {
    let operation = "ask for the committed offsets of the group";
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    let list = consumer.committed_offsets(list, TIMEOUT).map_err(KafkaError::request(operation))?;
    let mut committed = Committed::with_capacity(partitions.len());
    for element in elements(&list) {
        if element.error != Code::NoError {
            return Err(KafkaError::Request { operation: operation.into(), source: Rd::OffsetFetch(element.error) });
        }
        let partition = Partition { topic: Arc::from(element.topic), partition: element.partition };
        // A logical offset (negative) stands for "none".
        committed.insert(partition, ((element.offset >= 0).then_some(element.offset), element.metadata));
    }
    Ok(committed)
}

/// Returns the id of a topic as in [`Assigned::topic_id`]; none where there is no such topic.
pub(super) fn topic_id(consumer: &BaseConsumer<MemberContext>, topic: &str) -> Result<Option<String>, KafkaError> {
    match topic_ids(consumer, &[topic]) {
        Ok(ids) => Ok(Some(ids.get(topic).cloned().unwrap_or_else(|| topic.to_owned()))),
        Err(KafkaError::Request {
            source: Rd::MetadataFetch(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId),
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the id of each topic, spelled as Kafka's own tools do (URL-safe base64 of the UUID). A topic without one, on
/// a broker from before ids, goes by its name. A question without an answer is an error and not "no id": the id is
/// part of what an offset is kept under, so that a guess would read the topic twice.
fn topic_ids(consumer: &BaseConsumer<MemberContext>, topics: &[&str]) -> Result<HashMap<String, String>, KafkaError> {
    let operation = "ask for the ids of the topics";
    // Any broker can answer. Left to itself librdkafka looks for the controller, which the embedded broker never names.
    let metadata = consumer.fetch_metadata(topics.first().copied(), TIMEOUT).map_err(KafkaError::request(operation))?;
    let answering = Some(metadata.orig_broker_id()).filter(|id| *id >= 0);
    let broker = answering.or(metadata.brokers().first().map(|broker| broker.id())).unwrap_or_default();
    let event = describe_topics(consumer.client().native_ptr(), broker, topics)
        .ok_or_else(|| KafkaError::Timeout { operation: operation.into(), after: TIMEOUT })?;
    // SAFETY: the event is alive over these calls, and so is all that they return.
    let (code, descriptions) = unsafe {
        let mut count = 0;
        let result = ffi::rd_kafka_event_DescribeTopics_result(event.as_ptr());
        let first = match result.is_null() {
            true => ptr::null_mut(),
            false => ffi::rd_kafka_DescribeTopics_result_topics(result, &mut count),
        };
        let all = if first.is_null() { &[][..] } else { std::slice::from_raw_parts(first, count) };
        (Code::from(ffi::rd_kafka_event_error(event.as_ptr())), all)
    };
    if code != Code::NoError {
        return Err(KafkaError::Request { operation: operation.into(), source: Rd::AdminOp(code) });
    }
    let mut ids = HashMap::with_capacity(topics.len());
    for &description in descriptions {
        // SAFETY: `description` belongs to the event, which is still alive.
        let (topic, error, id) = unsafe {
            let id = ffi::rd_kafka_TopicDescription_topic_id(description);
            let is_zero = id.is_null()
                || (ffi::rd_kafka_Uuid_most_significant_bits(id) == 0
                    && ffi::rd_kafka_Uuid_least_significant_bits(id) == 0);
            (
                text(ffi::rd_kafka_TopicDescription_name(description)),
                Code::from(ffi::rd_kafka_error_code(ffi::rd_kafka_TopicDescription_error(description))),
                (!is_zero).then(|| text(ffi::rd_kafka_Uuid_base64str(id))),
            )
        };
        if error != Code::NoError {
            let operation = format!("ask for the id of topic {topic}");
            return Err(KafkaError::Request { operation, source: Rd::MetadataFetch(error) });
        }
        ids.insert(topic.clone(), id.unwrap_or(topic));
    }
    Ok(ids)
}

/// Asks and waits; `None` where no answer came in time.
fn describe_topics(
    client: *mut ffi::rd_kafka_t,
    broker: i32,
    topics: &[&str],
) -> Option<Native<ffi::rd_kafka_event_t>> {
    let names: Vec<_> = topics.iter().map(|topic| name(topic)).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let timeout_ms = i32::try_from(TIMEOUT.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client and the names are alive over the calls; librdkafka copies the collection and the options
    // before `rd_kafka_DescribeTopics` returns, and holds a reference of its own to the queue.
    unsafe {
        let topics = ffi::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let topics = Native::own(topics, ffi::rd_kafka_TopicCollection_destroy)?;
        let kind = ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = Native::own(ffi::rd_kafka_AdminOptions_new(client, kind), ffi::rd_kafka_AdminOptions_destroy)?;
        ffi::rd_kafka_AdminOptions_set_request_timeout(options.as_ptr(), timeout_ms, ptr::null_mut(), 0);
        ffi::rd_kafka_AdminOptions_set_broker(options.as_ptr(), broker, ptr::null_mut(), 0);
        let queue = Native::own(ffi::rd_kafka_queue_new(client), ffi::rd_kafka_queue_destroy)?;
        ffi::rd_kafka_DescribeTopics(client, topics.as_ptr(), options.as_ptr(), queue.as_ptr());
        // A little longer than the request's own timeout, so that its error arrives rather than ours.
        let event = ffi::rd_kafka_queue_poll(queue.as_ptr(), timeout_ms.saturating_add(500));
        Native::own(event, ffi::rd_kafka_event_destroy)
    }
}
