//! The thread of the source: polls librdkafka, carries out rebalances, and hands over what it reads. Everything that
//! blocks keeps polling meanwhile, so that no wait for the receiver or a broker costs the place in the group.

mod rebalance;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::Offset;
use tracing::{debug, info, warn};

use super::batch::{Batch, Received};
use super::bootstrap::Bootstrap;
use super::context::Rebalance;
use super::error::{KafkaError, hint, is_denial};
use super::lookup;
use super::settings::Settings;
use super::source::{Assigned, BEGINNING, Member, Partition, Reply, SourceEvent};

/// The longest wait for a message: bounds how late a rebalance or a stop is seen.
const IDLE: Duration = Duration::from_millis(100);
/// The wait between two tries at a full channel.
const FULL: Duration = Duration::from_millis(10);
/// The wait between two tries of a question to the broker, and between two probes of a broker that is down.
const RETRY: Duration = Duration::from_secs(1);
/// How long a probe of a broker may take.
const PROBE: Duration = Duration::from_millis(200);
/// Events served between two batches; a backlog is worked off over several.
const EVENTS_PER_BATCH: usize = 8;
/// Distinct failures told before the oldest memory of them is given up.
const TOLD_MAX: usize = 256;

/// The state of the thread.
pub(super) struct Reader {
    member: Arc<Member>,
    events: SyncSender<SourceEvent>,
    stop: Arc<AtomicBool>,
    bootstrap: Bootstrap,
    batch_messages_max: usize,
    batch_linger: Duration,
    /// A topic to ask for when probing.
    probe_topic: String,
    /// Every topic ever assigned; an index into it is good forever.
    topics: Arc<[Arc<str>]>,
    /// Topic objects of librdkafka with their place in `topics`, since the last rebalance.
    topic_keys: Vec<(usize, usize)>,
    /// Per topic and partition; `None` where not assigned.
    positions: Vec<Vec<Option<Position>>>,
    assigned: usize,
    /// The rebalance that librdkafka waits for us to carry out.
    unanswered: Option<Rebalance>,
    received: Vec<Received>,
    /// When to probe next, while no broker answers.
    down: Option<Instant>,
    /// Why a broker could not be reached, last we heard.
    last_transport_error: Option<String>,
    told: HashSet<String>,
}

/// How far an assigned partition has been handed over.
struct Position {
    /// The lowest offset to hand over.
    next: i64,
    /// Where the log ended when it was assigned; the end that the last fetch told may be older.
    high: i64,
    /// Whether the end was told since the last message.
    is_at_end: bool,
    /// Whether an error event has moved librdkafka's own position, see [`Reader::mend_positions`].
    is_displaced: bool,
}

/// The `next` of a partition that has failed.
const NEVER: i64 = i64::MAX;

/// The source was stopped, or its receiver is gone.
struct Stopped;

type Going = Result<(), Stopped>;

impl Reader {
    pub(super) fn new(
        settings: &Settings,
        member: Arc<Member>,
        events: SyncSender<SourceEvent>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Reader {
            member,
            events,
            stop,
            bootstrap: Bootstrap::new("consumer", &settings.brokers),
            batch_messages_max: settings.batch_messages_max,
            batch_linger: settings.batch_linger,
            probe_topic: settings.topics.first().cloned().unwrap_or_default(),
            topics: Arc::from([]),
            topic_keys: Vec::new(),
            positions: Vec::new(),
            assigned: 0,
            unanswered: None,
            received: Vec::new(),
            down: None,
            last_transport_error: None,
            told: HashSet::new(),
        }
    }

    /// Reads until stopped, then leaves the group.
    pub(super) fn run(mut self) {
        while self.step().is_ok() {}
        let context = self.member.context();
        self.member.leave(self.unanswered.take().into_iter().chain(std::iter::from_fn(|| context.next_rebalance())));
        debug!("kafka source ended");
    }

    fn step(&mut self) -> Going {
        for _ in 0..EVENTS_PER_BATCH {
            self.poll(Duration::ZERO)?;
        }
        while let Some(rebalance) = self.member.context().next_rebalance() {
            self.unanswered = Some(rebalance.clone());
            match rebalance {
                Rebalance::Assign(partitions) => self.assign(partitions)?,
                Rebalance::Revoke(partitions) => self.revoke(partitions)?,
            }
            self.mend_positions()?;
        }
        self.tell_errors()?;
        self.probe()?;
        match self.assigned {
            0 => self.poll(IDLE),
            _ => self.read(),
        }
    }

    /// Serves one event of the consumer's own queue. Doing so often enough is what keeps the place in the group.
    fn poll(&mut self, wait: Duration) -> Going {
        if self.stop.load(Ordering::SeqCst) {
            return Err(Stopped);
        }
        self.bootstrap.mend(self.member.consumer.client().native_ptr());
        // Errors come by the context as well, with their reasons.
        let stray = match self.member.consumer.poll(wait) {
            Some(Ok(message)) => Some((message.topic().to_string(), message.partition(), message.offset())),
            Some(Err(_)) | None => None,
        };
        // Partitions are forwarded before they start, so this cannot be; if it is, a record must not vanish quietly.
        if let Some((topic, partition, offset)) = stray {
            let reason = "the message came past the batch queue".to_string();
            self.fail(KafkaError::Fetch { topic, partition, offset, reason })?;
        }
        Ok(())
    }

    /// Takes a batch and hands it over, then what else the queue held.
    fn read(&mut self) -> Going {
        let mut received = std::mem::take(&mut self.received);
        self.member.queue.take(&mut received, self.batch_messages_max, IDLE, self.batch_linger);
        let is_full = received.len() >= self.batch_messages_max;
        let mut batch = Batch::new(self.member.clone(), self.topics.clone(), received.len());
        let mut notices = Vec::new();
        for message in received.drain(..) {
            if message.code() != Code::NoError {
                notices.push(message);
            } else if let Some(topic) = self.topic_index(&message)
                && self.advance(topic, message.partition(), message.offset())
            {
                batch.push(message, topic);
            }
        }
        self.received = received;
        if !batch.is_empty() {
            self.send(SourceEvent::Batch(batch))?;
        }
        let mut told: Vec<(usize, i32)> = Vec::new();
        for notice in notices {
            // One a partition: what follows it is of a position that the first has changed.
            let of = (notice.topic_key(), notice.partition());
            if !told.contains(&of) {
                told.push(of);
                self.tell_notice(&notice)?;
            }
        }
        // More is waiting after a full batch, so no end can be reached.
        if is_full { Ok(()) } else { self.tell_ends() }
    }

    /// Tells whether a message is to be handed over, and moves the position past it.
    fn advance(&mut self, topic: usize, partition: i32, offset: i64) -> bool {
        let partitions = self.positions.get_mut(topic).zip(usize::try_from(partition).ok());
        match partitions.and_then(|(partitions, partition)| partitions.get_mut(partition)) {
            Some(Some(position)) if offset >= position.next => {
                *position = Position { next: offset + 1, is_at_end: false, is_displaced: false, ..*position };
                true
            }
            _ => false,
        }
    }

    /// Tells of the partitions that have been read to their end.
    fn tell_ends(&mut self) -> Going {
        let mut list = TopicPartitionList::new();
        for (topic, partitions) in self.topics.iter().zip(&self.positions) {
            for (partition, position) in (0..).zip(partitions) {
                if position.as_ref().is_some_and(|position| !position.is_at_end && position.next != NEVER) {
                    list.add_partition(topic, partition);
                }
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        for at in self.member.progress(&list) {
            let Some(topic) = self.topics.iter().find(|topic| **topic == at.partition.topic).cloned() else { continue };
            let partition = Partition { topic, partition: at.partition.partition };
            let Some(position) = self.slot(&partition).and_then(Option::as_mut) else { continue };
            if at.position >= at.high.max(position.high) {
                position.is_at_end = true;
                self.send(SourceEvent::Eof { partition, position: at.position })?;
            }
        }
        Ok(())
    }

    /// Puts librdkafka back to where we are, after a rebalance, in partitions that had an error event.
    ///
    /// Its batch call takes such an event for a record and moves its own position past it. That matters only when a
    /// rebalance pauses the partition, since fetching goes on at that position: one record would be skipped.
    fn mend_positions(&mut self) -> Going {
        for (topic, partitions) in self.topics.clone().iter().zip(0..) {
            let displaced: Vec<(i32, i64)> = (0..)
                .zip(self.positions.get(partitions).into_iter().flatten())
                .filter_map(|(partition, position)| position.as_ref().map(|position| (partition, position)))
                .filter(|(_, position)| position.is_displaced && position.next != NEVER)
                .map(|(partition, position)| (partition, position.next))
                .collect();
            for (partition, next) in displaced {
                let sought = self.member.consumer.seek(topic, partition, Offset::Offset(next), RETRY);
                if let Err(source) = sought {
                    let partition = Partition { topic: topic.clone(), partition };
                    let operation = format!("go back to offset {next} of {partition}");
                    self.block(&partition);
                    self.fail(KafkaError::Request { operation, source })?;
                }
            }
        }
        Ok(())
    }

    /// Hands nothing over of a partition any more, until it is assigned anew.
    fn block(&mut self, partition: &Partition) {
        if let Some(Some(position)) = self.slot(partition) {
            position.next = NEVER;
        }
    }

    fn topic_index(&mut self, message: &Received) -> Option<usize> {
        let key = message.topic_key();
        if let Some((_, index)) = self.topic_keys.iter().find(|(known, _)| *known == key) {
            return Some(*index);
        }
        let name = message.topic_name();
        let index = self.topics.iter().position(|topic| **topic == *name)?;
        self.topic_keys.push((key, index));
        Some(index)
    }

    /// Waits for the receiver's answer. `None`, told as a failure, where it dropped the question.
    fn wait<T>(&mut self, answer: Receiver<T>, event: &'static str) -> Result<Option<T>, Stopped> {
        loop {
            match answer.recv_timeout(FULL) {
                Ok(answer) => return Ok(Some(answer)),
                Err(RecvTimeoutError::Timeout) => self.poll(Duration::ZERO)?,
                Err(RecvTimeoutError::Disconnected) => {
                    self.fail(KafkaError::Unanswered { event })?;
                    return Ok(None);
                }
            }
        }
    }

    /// Hands an event over, waiting while the channel is full.
    ///
    /// Partitions are not paused meanwhile: polling keeps the group satisfied, the prefetch limit keeps the memory, and
    /// a pause would throw away what is prefetched.
    fn send(&mut self, mut event: SourceEvent) -> Going {
        loop {
            event = match self.events.try_send(event) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(event)) => event,
                Err(TrySendError::Disconnected(_)) => return Err(Stopped),
            };
            self.poll(FULL)?;
        }
    }

    /// Tells a failure, once: librdkafka repeats some at every retry.
    fn fail(&mut self, error: KafkaError) -> Going {
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        match self.told.insert(error.to_string()) {
            true => self.send(SourceEvent::Failed(error)),
            false => Ok(()),
        }
    }

    /// Tells what came in the place of a message.
    fn tell_notice(&mut self, notice: &Received) -> Going {
        let reason = notice.reason();
        let (partition, offset) = (notice.partition(), notice.offset());
        let Some(index) = self.topic_index(notice) else { return Ok(()) };
        let Some(topic) = self.topics.get(index).cloned() else { return Ok(()) };
        let at = Partition { topic: topic.clone(), partition };
        let Some(Some(position)) = self.slot(&at) else { return Ok(()) };
        position.is_displaced = true;
        let topic = topic.to_string();
        let error = match notice.code() {
            Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation if offset >= 0 => {
                match self.member.consumer.fetch_watermarks(&topic, partition, RETRY) {
                    Ok((low, high)) => KafkaError::OutOfRange { topic, partition, position: offset, low, high },
                    Err(_) => KafkaError::Fetch { topic, partition, offset, reason },
                }
            }
            Code::BadMessage | Code::BadCompression => return self.pass_over(&at, offset, reason),
            Code::AutoOffsetReset | Code::MessageSizeTooLarge => KafkaError::Fetch { topic, partition, offset, reason },
            code if is_denial(code) => KafkaError::Denied { reason, hint: hint(code) },
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId => {
                return self.tell_missing(format!("{at}: {reason}"));
            }
            code => {
                warn!(partition = %at, offset, %code, reason, "kafka fetch failed, librdkafka retries");
                return Ok(());
            }
        };
        self.block(&at);
        self.fail(error)
    }

    /// Goes on behind a record that cannot be unpacked, one offset at a time: where the batch ends that holds it is not
    /// known, and nothing readable may be missed.
    fn pass_over(&mut self, at: &Partition, of_batch: i64, reason: String) -> Going {
        let Some(Some(position)) = self.slot(at) else { return Ok(()) };
        if position.next == NEVER {
            return Ok(());
        }
        let offset = position.next.max(of_batch);
        *position = Position { next: offset + 1, is_at_end: false, is_displaced: false, ..*position };
        // What was fetched before the seek is thrown away by it, so that no failure counts twice.
        let sought = self.member.consumer.seek(&at.topic, at.partition, Offset::Offset(offset + 1), RETRY);
        if let Err(source) = sought {
            self.block(at);
            let operation = format!("go on behind offset {offset} of {at}");
            return self.fail(KafkaError::Request { operation, source });
        }
        warn!(partition = %at, offset, reason, "a record cannot be unpacked and is passed over");
        self.send(SourceEvent::Unreadable { partition: at.clone(), offset, reason })
    }

    /// Tells what librdkafka reported about the client as a whole.
    fn tell_errors(&mut self) -> Going {
        for (code, reason) in self.member.context().observer.take_errors() {
            match code {
                Code::AllBrokersDown if self.down.is_none() => {
                    self.down = Some(Instant::now() + RETRY);
                    let message = self.last_transport_error.take().unwrap_or(reason);
                    warn!(message, "all kafka brokers are down");
                    self.send(SourceEvent::Down { message })?;
                }
                Code::AllBrokersDown => {}
                Code::BrokerTransportFailure | Code::Resolve | Code::SSL | Code::OperationTimedOut => {
                    self.last_transport_error = Some(reason);
                }
                Code::Fatal => {
                    let reason = self.member.consumer.client().fatal_error().map_or(reason, |(_, reason)| reason);
                    self.fail(KafkaError::Fatal { role: "consumer", reason })?;
                }
                Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::InvalidTopic => {
                    self.tell_missing(reason)?;
                }
                Code::PollExceeded => warn!(reason, "the kafka group took us for dead, joining again"),
                code if is_denial(code) => {
                    self.fail(KafkaError::Denied { reason, hint: hint(code) })?;
                }
                code => debug!(%code, reason, "librdkafka reported an error it handles itself"),
            }
        }
        Ok(())
    }

    fn tell_missing(&mut self, message: String) -> Going {
        // librdkafka says so ten times a second.
        if !self.told.insert(message.clone()) {
            return Ok(());
        }
        warn!(message, "a kafka topic is missing");
        self.send(SourceEvent::Missing { message })
    }

    /// While no broker answers: tries again now and then, as librdkafka says nothing when one is back.
    fn probe(&mut self) -> Going {
        if self.down.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        if self.member.consumer.fetch_metadata(Some(&self.probe_topic), PROBE).is_err() {
            self.down = Some(Instant::now() + RETRY);
            return Ok(());
        }
        self.down = None;
        info!("a kafka broker is up again");
        self.send(SourceEvent::Up)
    }

    /// Gives partitions our own topic names, learning new ones.
    fn intern(&mut self, partitions: Vec<(String, i32)>) -> Vec<Partition> {
        // The assignment changes: librdkafka may free topic objects and use their addresses again.
        self.topic_keys.clear();
        self.told.clear();
        let mut interned = Vec::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            let known = self.topics.iter().find(|known| ***known == *topic).cloned();
            let topic = known.unwrap_or_else(|| {
                let topic: Arc<str> = Arc::from(topic);
                self.topics = self.topics.iter().cloned().chain([topic.clone()]).collect();
                self.positions.push(Vec::new());
                topic
            });
            interned.push(Partition { topic, partition });
        }
        interned
    }

    fn slot(&mut self, partition: &Partition) -> Option<&mut Option<Position>> {
        let topic = self.topics.iter().position(|topic| *topic == partition.topic)?;
        let partitions = self.positions.get_mut(topic)?;
        let index = usize::try_from(partition.partition).ok()?;
        if partitions.len() <= index {
            partitions.resize_with(index + 1, || None);
        }
        partitions.get_mut(index)
    }

    fn is_assigned(&mut self, partition: &Partition) -> bool {
        self.slot(partition).is_some_and(|slot| slot.is_some())
    }

    fn set(&mut self, partition: &Partition, position: Option<Position>) {
        if let Some(slot) = self.slot(partition) {
            *slot = position;
        }
        self.assigned = self.positions.iter().flatten().flatten().count();
    }
}
