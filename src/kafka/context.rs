//! What librdkafka tells us from the side: logs, statistics, errors, rebalances, delivery reports. Only writes it down
//! for the thread that owns the client; does no work and never calls back into librdkafka, except to let go of
//! partitions while closing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError as Rd, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, NoCustomPartitioner, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tracing::{debug, error, info, warn};

use super::error::{KafkaError, code, hint, is_denial};

/// Errors kept until the owner of the client asks for them; the oldest go first.
const ERRORS_MAX: usize = 64;

/// Writes librdkafka's logs to ours and keeps its errors.
pub(super) struct Observer {
    role: &'static str,
    errors: Mutex<VecDeque<(Code, String)>>,
}

impl Observer {
    pub(super) fn new(role: &'static str) -> Self {
        Observer { role, errors: Mutex::default() }
    }

    /// Takes the errors reported since the last call.
    pub(super) fn take_errors(&self) -> Vec<(Code, String)> {
        lock(&self.errors).drain(..).collect()
    }
}

impl Observer {
    /// Puts the errors reported since the last call into one: why no broker answered. `None` where there was none.
    pub(super) fn take_unreachable(&self, brokers: &str) -> Option<KafkaError> {
        let errors = self.take_errors();
        if let Some((code, reason)) = errors.iter().find(|(code, _)| is_denial(*code)) {
            return Some(KafkaError::Denied { reason: reason.clone(), hint: hint(*code) });
        }
        // "All brokers are down" says less than the reason for any one of them.
        let telling = errors.iter().rev().find(|(code, _)| *code != Code::AllBrokersDown);
        telling.map(|(code, reason)| KafkaError::Unreachable {
            brokers: brokers.to_string(),
            reason: reason.clone(),
            hint: hint(*code),
        })
    }
}

impl ClientContext for Observer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel as L;
        let role = self.role;
        // The same properties go to every client, and each complains of those meant for the others.
        if facility == "CONFWARN" && message.contains("will be ignored") {
            return debug!(role, facility, message, "librdkafka");
        }
        match level {
            L::Emerg | L::Alert | L::Critical => error!(role, facility, message, "librdkafka"),
            // librdkafka retries by itself whatever it logs here; what needs us comes as an error event.
            L::Error | L::Warning => warn!(role, facility, message, "librdkafka"),
            L::Notice | L::Info => info!(role, facility, message, "librdkafka"),
            L::Debug => debug!(role, facility, message, "librdkafka"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let json = String::from_utf8_lossy(statistics);
        debug!(role = self.role, %json, "librdkafka statistics");
    }

    fn error(&self, error: Rd, reason: &str) {
        debug!(role = self.role, %error, reason, "librdkafka reported an error");
        let mut errors = lock(&self.errors);
        if errors.len() == ERRORS_MAX {
            errors.pop_front();
        }
        errors.push_back((code(&error), reason.to_string()));
    }
}

impl ConsumerContext for Observer {}

/// A change of assignment, as the group told it.
#[derive(Clone, Debug)]
pub(super) enum Rebalance {
    Assign(Vec<(String, i32)>),
    Revoke(Vec<(String, i32)>),
}

/// The side channel of a group member.
pub(super) struct MemberContext {
    pub observer: Observer,
    rebalances: Mutex<VecDeque<Rebalance>>,
    closing: AtomicBool,
}

impl MemberContext {
    pub(super) fn new() -> Self {
        MemberContext {
            observer: Observer::new("consumer"),
            rebalances: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Takes the oldest rebalance not yet carried out. There are never many: the group waits for each.
    pub(super) fn next_rebalance(&self) -> Option<Rebalance> {
        lock(&self.rebalances).pop_front()
    }

    /// From now on partitions are let go as soon as the group asks, with nobody told.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.observer.log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.observer.stats_raw(statistics);
    }

    fn error(&self, error: Rd, reason: &str) {
        self.observer.error(error, reason);
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.closing.load(Ordering::SeqCst) {
            return let_go(consumer, kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS, list);
        }
        let partitions = super::native::elements(list).into_iter().map(|e| (e.topic, e.partition)).collect();
        let rebalance = match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign(partitions),
            _ => Rebalance::Revoke(partitions),
        };
        lock(&self.rebalances).push_back(rebalance);
    }
}

/// Answers a rebalance of a member that leaves.
///
/// New partitions are taken, at their end, only to be given back with the others: librdkafka waits for an answer to each
/// rebalance, and refuses to take back what it was never told is held.
pub(super) fn let_go(consumer: &BaseConsumer<MemberContext>, is_assignment: bool, list: &mut TopicPartitionList) {
    let answered = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative if is_assignment => {
            list.set_all_offsets(Offset::End).and_then(|()| consumer.incremental_assign(list))
        }
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    };
    if let Err(error) = answered {
        debug!(%error, "failed to let go of kafka partitions");
    }
}

/// The side channel of a producer: counts what is under way and what failed.
pub(super) struct DeliveryContext {
    pub observer: Observer,
    ledger: Mutex<Ledger>,
    settled: Condvar,
}

#[derive(Default)]
struct Ledger {
    under_way: u64,
    failed: u64,
    first: Option<(String, Rd)>,
}

impl DeliveryContext {
    pub(super) fn new(role: &'static str) -> Self {
        DeliveryContext { observer: Observer::new(role), ledger: Mutex::default(), settled: Condvar::new() }
    }

    /// Counts a record handed to librdkafka. Called before it is, so that its report cannot come first.
    pub(super) fn sent(&self) {
        lock(&self.ledger).under_way += 1;
    }

    /// Takes back one [`DeliveryContext::sent`]: librdkafka did not accept the record.
    pub(super) fn unsent(&self) {
        let mut ledger = lock(&self.ledger);
        ledger.under_way = ledger.under_way.saturating_sub(1);
    }

    /// Waits until every record has its report; false where `timeout` came first.
    pub(super) fn wait_settled(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut ledger = lock(&self.ledger);
        while ledger.under_way > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            ledger = self.settled.wait_timeout(ledger, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Takes the failures since the last call, as one error.
    pub(super) fn take_failures(&self) -> Result<(), KafkaError> {
        let mut ledger = lock(&self.ledger);
        let failed = std::mem::take(&mut ledger.failed);
        match ledger.first.take() {
            Some((topic, source)) => Err(KafkaError::Delivery { failed, topic, source }),
            None => Ok(()),
        }
    }
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.observer.log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.observer.stats_raw(statistics);
    }

    fn error(&self, error: Rd, reason: &str) {
        self.observer.error(error, reason);
    }
}

impl ProducerContext<NoCustomPartitioner> for DeliveryContext {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, _: ()) {
        let mut ledger = lock(&self.ledger);
        ledger.under_way = ledger.under_way.saturating_sub(1);
        if let Err((error, message)) = report {
            ledger.failed += 1;
            if ledger.first.is_none() {
                ledger.first = Some((message.topic().to_string(), error.clone()));
            }
        }
        if ledger.under_way == 0 {
            self.settled.notify_all();
        }
    }
}

/// Locks; a poisoned lock is taken as it is, since every value here is valid between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
