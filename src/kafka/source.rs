//! The source: a member of a consumer group on a thread of its own. It hands over batches, and asks before it starts
//! or gives up a partition; where to start and what to commit is the receiver's to know.
//!
//! Never commits an offset, never skips a record without saying so, never holds more than its limits in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as ffi;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError as Rd, RDKafkaErrorCode as Code};
use tracing::warn;

use super::batch::{Batch, Queue};
use super::context::{MemberContext, Rebalance, let_go, lock};
use super::error::KafkaError;
use super::lookup;
use super::native::{Native, elements, name, text};
use super::reader::Reader;
use super::settings::Settings;
use super::sink::Offset;

/// The start offset that stands for the beginning of a partition.
pub const BEGINNING: i64 = -2;

/// How long a stopping source waits for the group to let it go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(15);

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// A partition that the group gave to this member, and what the broker knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub topic: Arc<str>,
    /// The topic's id as Kafka's tools spell it; the topic's name where the broker has no ids. A topic deleted and made
    /// again has another.
    pub topic_id: String,
    pub partition: i32,
    /// The group's committed offset: the next to read.
    pub committed: Option<i64>,
    /// What was committed with it; empty where there is none.
    pub metadata: String,
    /// The log holds `[low, high)`.
    pub low: i64,
    pub high: i64,
}

/// What the source has to say, in order. What follows a question waits for its answer.
pub enum SourceEvent<B = Batch> {
    /// Partitions to begin with. The answer holds the first offset to hand over of each, in the same order, or
    /// [`BEGINNING`].
    Assigned { partitions: Vec<Assigned>, start: Reply<Vec<i64>> },
    /// Partitions to give up. Every batch with messages of theirs came before; answer when those are dealt with.
    ///
    /// `lost` says that the group went on without us: what was in hand cannot be committed under its name any more.
    Revoked { partitions: Vec<Partition>, lost: bool, done: Reply<()> },
    /// At least one message.
    Batch(B),
    /// Everything that was in the partition has been handed over. Comes again each time the end is caught up with;
    /// an open transaction in the log puts it off.
    /// The position is the end of the log, past markers of transactions, which are no records.
    Eof { partition: Partition, position: i64 },
    /// A record that cannot be had: its batch does not unpack, or is damaged. It is passed over.
    Unreadable { partition: Partition, offset: i64, reason: String },
    /// A topic that does not exist, or not any more. Reading begins by itself when it does.
    Missing { message: String },
    /// No broker answers. Reading goes on by itself when one does.
    Down { message: String },
    /// A broker answers again.
    Up,
    /// Something that only a person or a restart can mend: the position has left the log, the broker refuses us.
    /// Nothing more comes from the partitions concerned, but the member stays in the group until it is stopped, so
    /// that work in hand can still be committed.
    Failed(KafkaError),
}

/// The way back for the answer to a question of the source.
#[derive(Debug)]
pub struct Reply<T>(SyncSender<T>);

impl<T> Reply<T> {
    /// Makes a reply with the end at which its answer arrives.
    pub fn new() -> (Self, Receiver<T>) {
        let (sender, receiver) = mpsc::sync_channel(1);
        (Reply(sender), receiver)
    }

    /// Answers. An asker who has gone meanwhile, because the source was stopped, does not mind.
    pub fn send(self, answer: T) {
        let _ = self.0.send(answer);
    }
}

/// A running source. Stopped when dropped.
pub struct Source {
    member: Arc<Member>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Joins the group and starts reading. At most `queue_batches_max` events wait in the channel; when it is full the
    /// source keeps its place in the group and fetches no further than its limits.
    ///
    /// Brokers that are down are no error here: [`SourceEvent::Down`] tells of them. Errors: a setting that cannot be.
    pub fn start(settings: &Settings, queue_batches_max: usize) -> Result<(Source, Receiver<SourceEvent>), KafkaError> {
        settings.check()?;
        if settings.topics.is_empty() {
            return Err(KafkaError::Setting { key: "topics".into(), expected: "at least one topic".into() });
        }
        let member = Arc::new(Member::join(settings)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::sync_channel(queue_batches_max.max(1));
        let reader = Reader::new(settings, member.clone(), sender, stop.clone());
        let name = "kafka-source";
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || reader.run())
            .map_err(|source| KafkaError::Thread { name, source })?;
        Ok((Source { member, stop, thread: Some(thread) }, receiver))
    }

    /// Returns the handle by which a sink commits offsets for this member.
    pub fn group(&self) -> GroupHandle {
        GroupHandle { member: self.member.clone(), valid: None }
    }

    /// Returns how many records of each assigned partition have not been handed over yet, as far as the last fetch
    /// knew. Asks no broker.
    pub fn lag(&self) -> Vec<(Partition, i64)> {
        self.member.lag()
    }

    /// Returns the id of the cluster; `None` where no broker told it within `timeout`.
    pub fn cluster_id(&self, timeout: Duration) -> Option<String> {
        self.member.consumer.client().fetch_cluster_id(timeout).filter(|id| !id.is_empty())
    }

    /// Returns how many partitions a topic has; zero where there is no such topic.
    pub fn partition_count(&self, topic: &str, timeout: Duration) -> Result<usize, KafkaError> {
        let operation = format!("ask for the partitions of topic {topic}");
        let client = self.member.consumer.client();
        let metadata = client.fetch_metadata(Some(topic), timeout).map_err(KafkaError::request(operation))?;
        Ok(metadata.topics().iter().filter(|found| found.name() == topic).map(|found| found.partitions().len()).sum())
    }

    /// Tells whether a partition holds nothing from `position` on. Asks its broker; none where that does not answer within
    /// `timeout`.
    pub fn ends_at(&self, partition: &Partition, position: i64, timeout: Duration) -> Option<bool> {
        let ends = self.member.consumer.fetch_watermarks(&partition.topic, partition.partition, timeout);
        ends.ok().map(|(_, high)| high <= position)
    }

    /// Tells whether a broker answers within `timeout`.
    pub fn answers(&self, topic: &str, timeout: Duration) -> bool {
        self.member.consumer.fetch_metadata(Some(topic), timeout).is_ok()
    }

    /// Leaves the group and ends the thread. Nothing is asked or sent any more, so the receiver should have dealt with
    /// what it has; batches still held stay readable.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the kafka source thread had panicked");
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.end();
    }
}

/// A group member, for committing offsets in its name.
#[derive(Clone)]
pub struct GroupHandle {
    member: Arc<Member>,
    /// Whether the work in hand is still this member's to commit; where there is none, it always is.
    valid: Option<Arc<AtomicBool>>,
}

/// Tells whether a consumer has a place in its group.
fn is_member(consumer: *mut ffi::rd_kafka_t) -> bool {
    // SAFETY: the consumer is alive over the calls; the identity is ours until it is dropped, and so is its text.
    unsafe {
        let destroy = ffi::rd_kafka_consumer_group_metadata_destroy;
        let Some(identity) = Native::own(ffi::rd_kafka_consumer_group_metadata(consumer), destroy) else {
            return false;
        };
        let member = text(ffi::rd_kafka_consumer_group_metadata_member_id(identity.as_ptr()));
        ffi::rd_kafka_consumer_group_metadata_generation_id(identity.as_ptr()) >= 0 && !member.is_empty()
    }
}

impl GroupHandle {
    /// Returns the member's identity in the group as of now. To be asked for at each commit: an identity from before
    /// the last join is not fenced off by the broker.
    pub(super) fn metadata(&self) -> Option<ConsumerGroupMetadata> {
        // Without a membership, brokers would take offsets from anybody.
        let is_member = || is_member(self.member.consumer.client().native_ptr());
        let before = is_member();
        let metadata = self.member.consumer.group_metadata().filter(|_| before && is_member());
        // Looked at after: an identity from before the work was lost is refused by the broker, one from after never leaves.
        metadata.filter(|_| self.valid.as_ref().is_none_or(|valid| valid.load(Ordering::SeqCst)))
    }

    /// Returns a handle that commits nothing once `valid` is false: partitions that were given up meanwhile may come back,
    /// and the same offsets must not be committed under the new membership.
    pub fn while_valid(&self, valid: Arc<AtomicBool>) -> GroupHandle {
        GroupHandle { member: self.member.clone(), valid: Some(valid) }
    }

    /// Returns the topics among these offsets that are gone: deleted, or deleted and made again. Asks the broker.
    pub fn gone(&self, offsets: &[Offset]) -> Result<Vec<String>, KafkaError> {
        let mut topics: Vec<(&str, &str)> = offsets.iter().map(|o| (o.topic.as_str(), o.topic_id.as_str())).collect();
        topics.sort_unstable();
        topics.dedup();
        let mut gone = Vec::new();
        for (topic, id) in topics {
            if lookup::topic_id(&self.member.consumer, topic)?.is_none_or(|now| now != id) {
                gone.push(topic.to_owned());
            }
        }
        Ok(gone)
    }

    /// Tells whether the group's committed offsets are exactly these, with their metadata. Asks the broker.
    pub fn holds(&self, offsets: &[Offset]) -> Result<bool, KafkaError> {
        let named = |offset: &Offset| Partition { topic: offset.topic.as_str().into(), partition: offset.partition };
        let partitions: Vec<Partition> = offsets.iter().map(named).collect();
        let committed = lookup::committed(&self.member.consumer, &partitions)?;
        let same = |offset: &Offset| {
            committed
                .get(&named(offset))
                .is_some_and(|(next, metadata)| *next == Some(offset.next) && *metadata == offset.metadata)
        };
        Ok(!offsets.is_empty() && offsets.iter().all(same))
    }
}

/// How far a partition has been taken.
pub(super) struct Progress {
    pub partition: Partition,
    /// The next offset; past markers of transactions, too.
    pub position: i64,
    pub high: i64,
}

/// The consumer with the queue its partitions flow into; out of its group after [`Member::leave`].
pub(super) struct Member {
    // Dropped in this order: the queue must go before the client.
    pub queue: Queue,
    pub consumer: BaseConsumer<MemberContext>,
    /// Where each assigned partition was told to start.
    starts: Mutex<HashMap<Partition, i64>>,
}

impl Member {
    fn join(settings: &Settings) -> Result<Member, KafkaError> {
        let failed = |source| KafkaError::Client { role: "consumer", source };
        let consumer: BaseConsumer<MemberContext> =
            settings.consumer().create_with_context(MemberContext::new()).map_err(failed)?;
        let queue = Queue::new(consumer.client().native_ptr());
        let queue = queue.ok_or_else(|| failed(Rd::Global(Code::CriticalSystemResource)))?;
        let member = Member { queue, consumer, starts: Mutex::default() };
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        member.consumer.subscribe(&topics).map_err(KafkaError::request("subscribe to the input topics"))?;
        Ok(member)
    }

    pub(super) fn context(&self) -> &MemberContext {
        self.consumer.client().context()
    }

    /// Remembers where a partition starts, for the lag until its first message.
    pub(super) fn started(&self, partition: Partition, at: i64) {
        lock(&self.starts).insert(partition, at);
    }

    pub(super) fn ended(&self, partition: &Partition) {
        lock(&self.starts).remove(partition);
    }

    /// Leaves the group, letting go of all partitions; the client itself lives on for the batches still held.
    /// `unanswered`: the rebalances to which librdkafka has had no answer.
    pub(super) fn leave(&self, unanswered: impl Iterator<Item = Rebalance>) {
        self.context().close();
        for rebalance in unanswered {
            let is_assignment = matches!(rebalance, Rebalance::Assign(_));
            let (Rebalance::Assign(partitions) | Rebalance::Revoke(partitions)) = rebalance;
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for (topic, partition) in partitions {
                list.add_partition(&topic, partition);
            }
            let_go(&self.consumer, is_assignment, &mut list);
        }
        self.consumer.unsubscribe();
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while self.consumer.assignment().is_ok_and(|held| held.count() > 0) {
            if Instant::now() >= deadline {
                return warn!("the kafka consumer did not leave its group in time");
            }
            let _ = self.consumer.poll(Duration::from_millis(20));
        }
    }

    fn lag(&self) -> Vec<(Partition, i64)> {
        let Ok(assignment) = self.consumer.assignment() else { return Vec::new() };
        let progress = self.progress(&assignment).into_iter();
        progress.map(|at| (at.partition, (at.high - at.position).max(0))).collect()
    }

    /// Returns how far each partition of the list has been taken, and its end as the last fetch told it; those of which
    /// nothing is known yet are left out. Asks no broker.
    pub(super) fn progress(&self, list: &TopicPartitionList) -> Vec<Progress> {
        // SAFETY: the client and the list are alive. The call writes the offsets of the list, which nobody else has.
        unsafe { ffi::rd_kafka_position(self.consumer.client().native_ptr(), list.ptr()) };
        let starts = lock(&self.starts);
        let progress = |element: super::native::Element| {
            let partition = Partition { topic: Arc::from(element.topic), partition: element.partition };
            let (low, high) = self.cached_ends(&partition)?;
            let start = starts.get(&partition).copied()?;
            // No offset before the first message.
            let position = if element.offset >= 0 { element.offset } else { start.max(low) };
            Some(Progress { partition, position, high })
        };
        elements(list).into_iter().filter_map(progress).collect()
    }

    /// Returns the ends of a log as the last fetch told them.
    fn cached_ends(&self, partition: &Partition) -> Option<(i64, i64)> {
        let (mut low, mut high) = (-1, -1);
        let topic = name(&partition.topic);
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client and the name are alive, and the two outputs outlive the call.
        let answer = unsafe {
            ffi::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition.partition, &mut low, &mut high)
        };
        (Code::from(answer) == Code::NoError && high >= 0).then_some((low.max(0), high))
    }
}

impl Drop for Member {
    /// The consumer's own drop closes it, and waits until all partitions are let go; from here on they are, even where
    /// the thread of the source has panicked.
    fn drop(&mut self) {
        self.context().close();
    }
}
