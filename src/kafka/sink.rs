//! The sink: records and consumer offsets in one Kafka transaction, all or nothing. Blocks, and is meant for a thread of
//! its own. Decides nothing about what to write; after a failure it is ready for the same call again, or says why not.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::error::{KafkaError as Rd, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use rdkafka::topic_partition_list::Offset as RdOffset;
use tracing::{debug, warn};

use super::bootstrap::Bootstrap;
use super::context::DeliveryContext;
use super::error::{KafkaError, code};
use super::settings::Settings;
use super::source::GroupHandle;

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub topic: String,
    /// Empty for none.
    pub key: Vec<u8>,
    /// `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A consumer offset to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offset {
    pub topic: String,
    /// Of the topic as it was when the offset was read, as [`Assigned::topic_id`](super::source::Assigned).
    pub topic_id: String,
    pub partition: i32,
    /// The next offset to read.
    pub next: i64,
    /// What comes back as [`Assigned::metadata`](super::source::Assigned); brokers take 4096 bytes by default.
    pub metadata: String,
}

/// The shortest step in which librdkafka can be polled.
const STEP: Duration = Duration::from_millis(1);
/// How often the events of an idle producer are served.
const IDLE: Duration = Duration::from_millis(500);
/// Events served in one such round.
const IDLE_EVENTS: usize = 64;
/// How much longer than its timeout a call of librdkafka may take before it is left to itself.
const GRACE: Duration = Duration::from_secs(2);
/// What the client is called in logs.
const ROLE: &str = "transactional producer";

/// A transactional producer.
pub struct Sink {
    settings: Settings,
    timeout: Duration,
    /// `None` after a failure that only a new producer mends; made by the next commit.
    producer: Option<Connected>,
    fenced: bool,
}

impl Sink {
    /// Connects, fences off any other producer with the same transactional id, and ends what it left open. `timeout`
    /// bounds this, and later each step of a commit.
    ///
    /// Errors: [`KafkaError::Unreachable`] and [`KafkaError::Denied`] with the reason, settings that cannot be.
    pub fn open(settings: &Settings, timeout: Duration) -> Result<Sink, KafkaError> {
        settings.check()?;
        let producer = Connected::open(settings, timeout)?;
        Ok(Sink { settings: settings.clone(), timeout, producer: Some(producer), fenced: false })
    }

    /// Makes a new producer where the last failure took it, ending whatever transaction that one left open.
    pub fn reconnect(&mut self) -> Result<(), KafkaError> {
        if self.producer.is_none() && !self.fenced {
            self.producer = Some(Connected::open(&self.settings, self.timeout)?);
        }
        Ok(())
    }

    /// Writes `records` and commits `offsets` for the member `group`, in one transaction; nothing of it where it fails.
    ///
    /// After an error that [is retriable](KafkaError::is_retriable) the same call may be made again. An error of the
    /// last step may hide a success, so that a repeated record is possible: its deterministic id tells it. A sink that
    /// [is fenced](KafkaError::is_fenced) stays so.
    pub fn commit(
        &mut self,
        records: &[Outgoing],
        offsets: &[Offset],
        group: Option<&GroupHandle>,
    ) -> Result<(), KafkaError> {
        if records.is_empty() && offsets.is_empty() {
            return Ok(());
        }
        if self.fenced {
            let source = Rd::Global(Code::Fenced);
            return Err(KafkaError::Fenced { operation: "begin a transaction", source });
        }
        let connected = match self.producer.take() {
            Some(connected) => connected,
            None => Connected::open(&self.settings, self.timeout)?,
        };
        match connected.transact(records, offsets, group) {
            Ok(()) => self.producer = Some(connected),
            Err(error) => {
                self.fenced = error.is_fenced();
                self.producer = connected.recover(&error);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A producer past `init_transactions`, with its thread.
struct Connected {
    // Dropped in this order, so that the client ends on its own thread: librdkafka may not come back from that either.
    producer: Arc<Client>,
    thread: ClientThread,
    timeout: Duration,
}

impl Connected {
    fn open(settings: &Settings, timeout: Duration) -> Result<Connected, KafkaError> {
        let producer: Client = settings
            .transactional()
            .create_with_context(DeliveryContext::new(ROLE))
            .map_err(|source| KafkaError::Client { role: ROLE, source })?;
        let producer = Arc::new(producer);
        let thread = ClientThread::start(producer.clone(), Bootstrap::new(ROLE, &settings.brokers))?;
        let connected = Connected { producer, thread, timeout };
        let operation = "take over the transactional id";
        connected.call(operation, move |producer| producer.init_transactions(timeout)).map_err(|error| {
            serve_events(&connected.producer);
            let timed_out = match &error {
                KafkaError::Transaction { source, .. } => code(source) == Code::OperationTimedOut,
                error => matches!(error, KafkaError::Timeout { .. }),
            };
            let observer = &connected.producer.context().observer;
            timed_out.then(|| observer.take_unreachable(&settings.brokers)).flatten().unwrap_or(error)
        })?;
        Ok(connected)
    }

    /// Makes a call that blocks, but no longer than it should.
    fn call(
        &self,
        operation: &'static str,
        call: impl FnOnce(&Client) -> Result<(), Rd> + Send + 'static,
    ) -> Result<(), KafkaError> {
        let patience = self.timeout + GRACE;
        match self.thread.call(call, patience) {
            Some(answer) => answer.map_err(|source| KafkaError::transaction(operation, source)),
            None => Err(KafkaError::Timeout { operation: operation.into(), after: patience }),
        }
    }

    fn transact(
        &self,
        records: &[Outgoing],
        offsets: &[Offset],
        group: Option<&GroupHandle>,
    ) -> Result<(), KafkaError> {
        let started = Instant::now();
        self.producer.begin_transaction().map_err(|e| KafkaError::transaction("begin a transaction", e))?;
        for record in records {
            self.send(record)?;
        }
        if let Some(group) = group
            && !offsets.is_empty()
        {
            self.send_offsets(offsets, group)?;
        }
        self.settle()?;
        // All is delivered, so that the flush inside, which polls in steps of 100 ms, finds nothing to wait for.
        let timeout = self.timeout;
        self.call("commit a transaction", move |producer| producer.commit_transaction(timeout))?;
        debug!(records = records.len(), offsets = offsets.len(), took = ?started.elapsed(), "kafka transaction");
        Ok(())
    }

    fn send(&self, outgoing: &Outgoing) -> Result<(), KafkaError> {
        let deadline = Instant::now() + self.timeout;
        let context = self.producer.context();
        let mut record = BaseRecord::<[u8], [u8]>::to(&outgoing.topic);
        record.key = (!outgoing.key.is_empty()).then_some(&*outgoing.key);
        record.payload = outgoing.payload.as_deref();
        record.headers = headers(outgoing.headers.iter().map(|(key, value)| (key.as_str(), value.as_slice())));
        loop {
            context.sent();
            let Err((error, returned)) = self.producer.send(record) else { return Ok(()) };
            context.unsent();
            if code(&error) != Code::QueueFull || Instant::now() >= deadline {
                let topic = outgoing.topic.clone();
                return Err(KafkaError::Delivery { failed: 1, topic, source: error });
            }
            record = returned;
            self.producer.poll(STEP);
        }
    }

    fn send_offsets(&self, offsets: &[Offset], group: &GroupHandle) -> Result<(), KafkaError> {
        let operation = "add the consumer offsets to a transaction";
        let failed = |source| KafkaError::transaction(operation, source);
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for offset in offsets {
            let mut element = list.add_partition(&offset.topic, offset.partition);
            element.set_offset(RdOffset::Offset(offset.next)).map_err(failed)?;
            if !offset.metadata.is_empty() {
                element.set_metadata(&offset.metadata);
            }
        }
        let member = group.metadata().ok_or_else(|| failed(Rd::Global(Code::UnknownGroup)))?;
        let timeout = self.timeout;
        self.call(operation, move |producer| producer.send_offsets_to_transaction(&list, &member, timeout))
    }

    /// Waits until every record sent has its report, and takes the failures among them.
    fn settle(&self) -> Result<(), KafkaError> {
        let deadline = Instant::now() + self.timeout;
        let context = self.producer.context();
        while !context.wait_settled(Duration::ZERO) {
            if Instant::now() >= deadline {
                let operation = "deliver the records of a transaction".into();
                return Err(KafkaError::Timeout { operation, after: self.timeout });
            }
            self.producer.poll(STEP);
        }
        context.take_failures()
    }

    /// Makes ready for the next transaction, or gives up this producer: the next one ends what is still open.
    fn recover(self, error: &KafkaError) -> Option<Connected> {
        // Only an abort after a refusal leaves a producer as good as new. After a timeout the call goes on inside
        // librdkafka, maybe for good; after a failed delivery the sequence numbers have a gap, and the next transaction
        // would fail by it.
        if !error.is_lost_group() {
            return None;
        }
        // The abort waits for the reports of purged records, which only we can serve: so that comes first.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        let _ = self.settle();
        let _ = self.producer.context().take_failures();
        let timeout = self.timeout;
        match self.call("abort a transaction", move |producer| producer.abort_transaction(timeout)) {
            Ok(()) => Some(self),
            Err(error) => {
                warn!(%error, "failed to abort a kafka transaction, starting a new producer");
                None
            }
        }
    }
}

/// Makes librdkafka's headers; `None` of none.
pub(super) fn headers<'a>(pairs: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>) -> Option<OwnedHeaders> {
    if pairs.len() == 0 {
        return None;
    }
    let all = OwnedHeaders::new_with_capacity(pairs.len());
    Some(pairs.fold(all, |all, (key, value)| all.insert(Header { key, value: Some(value) })))
}

type Client = BaseProducer<DeliveryContext>;
type Call = Box<dyn FnOnce(&Client) + Send>;

/// The thread of one producer: makes the calls that block, and serves the client's events while there are none, as logs
/// and errors would pile up. Ends, and the client with it, when this is dropped.
///
/// Such a call has a timeout, and still may never come back: librdkafka drops the answer it waits for where the broker
/// that it asked is not named by the cluster any more. Its thread is then left behind with its client, which the next
/// one fences off.
struct ClientThread(Sender<Call>);

impl ClientThread {
    fn start(producer: Arc<Client>, mut bootstrap: Bootstrap) -> Result<ClientThread, KafkaError> {
        let name = "kafka-producer";
        let (calls, asked) = mpsc::channel::<Call>();
        let serve = move || {
            loop {
                match asked.recv_timeout(IDLE) {
                    Ok(call) => call(&producer),
                    // Never waits inside librdkafka, so that a transaction does not find its reports taken.
                    Err(RecvTimeoutError::Timeout) => serve_events(&producer),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                bootstrap.mend(producer.client().native_ptr());
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(serve);
        thread.map(|_| ClientThread(calls)).map_err(|source| KafkaError::Thread { name, source })
    }

    /// Makes a call; `None` where it did not come back within `patience`.
    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> T + Send + 'static,
        patience: Duration,
    ) -> Option<T> {
        let (answer, answered) = mpsc::channel();
        // Neither end waits for the other for good: one of them gone is all there is to know.
        self.0.send(Box::new(move |client| drop(answer.send(call(client))))).ok()?;
        answered.recv_timeout(patience).ok()
    }
}

fn serve_events(producer: &Client) {
    for _ in 0..IDLE_EVENTS {
        producer.poll(Duration::ZERO);
    }
}
