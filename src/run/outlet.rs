//! The effect path's last step: one thread that carries flushes into Kafka transactions, again and again until each has
//! landed. Decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::{error, info, warn};

use crate::kafka::admin::{self, Topic};
use crate::kafka::error::KafkaError;
use crate::kafka::settings::Settings;
use crate::kafka::sink::{Offset, Outgoing, Sink};
use crate::kafka::source::GroupHandle;
use crate::model::time::EventTime;
use crate::telemetry::Telemetry;
use crate::telemetry::instruments::Stage;

/// How long one step of a transaction may take before it is tried anew.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long making the topics may take before it is tried anew: a shutdown waits for it.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Effects and the offsets they cover, for one transaction.
#[derive(Debug)]
pub struct Flush {
    pub records: Vec<Outgoing>,
    pub offsets: Vec<Offset>,
    /// The tick through which this emits.
    pub through: Option<EventTime>,
}

/// What became of a flush.
#[derive(Debug)]
pub enum Landed {
    Done {
        through: Option<EventTime>,
    },
    /// It was called off; whether it had landed is for the group's offsets to say.
    CalledOff,
    /// Nothing more can be emitted by this process.
    Failed(KafkaError),
}

/// The way out for flushes, seen from the core's thread: one at a time.
pub trait Exit {
    /// Sends a flush on its way. Only while none is.
    fn send(&mut self, flush: Flush) -> Result<()>;

    /// Returns what became of the flush on its way, where that is known within `wait`.
    fn landed(&mut self, wait: Duration) -> Result<Option<Landed>>;

    /// Tells whether a flush is on its way.
    fn in_flight(&self) -> bool;

    /// Calls off the flush on its way: what it covers is somebody else's from now on. It may land all the same, where it is
    /// being committed at this moment; it is not tried again.
    fn call_off(&mut self);
}

/// What a flush asks of Kafka on its way; as at [`Sink`] and [`GroupHandle`].
pub trait Transactions {
    fn reconnect(&mut self) -> Result<(), KafkaError>;
    fn commit(&mut self, records: &[Outgoing], offsets: &[Offset]) -> Result<(), KafkaError>;
    fn holds(&self, offsets: &[Offset]) -> Result<bool, KafkaError>;
    fn gone(&self, offsets: &[Offset]) -> Result<Vec<String>, KafkaError>;
}

impl Flush {
    /// Tries to make it land, for the first time or again.
    pub fn carry(&mut self, again: bool, kafka: &mut impl Transactions) -> Result<(), KafkaError> {
        // A commit that came back as failed may have landed: once the broker has ended what was open, the group's
        // offsets tell.
        if again {
            kafka.reconnect()?;
            // A topic that was deleted takes no offset any more, and has lost what it had: the effects must not wait for one,
            // and those of the other topics have to tell.
            let gone = kafka.gone(&self.offsets)?;
            if !gone.is_empty() {
                warn!(topics = gone.join(", "), "offsets of topics that are gone are not committed");
                self.offsets.retain(|offset| !gone.contains(&offset.topic));
            }
            if kafka.holds(&self.offsets)? {
                return Ok(());
            }
        }
        kafka.commit(&self.records, &self.offsets)
    }
}

/// Tells whether trying again may help. A member whom the group went on without joins it again by itself.
pub fn may_pass(error: &KafkaError) -> bool {
    !error.is_fenced() && (error.is_retriable() || error.is_lost_group())
}

/// The running outlet to Kafka.
pub struct Outlet {
    flushes: Option<SyncSender<(Flush, Arc<AtomicBool>)>>,
    landed: Receiver<Landed>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// Whether the flush on its way is still to land; none where none is.
    in_flight: Option<Arc<AtomicBool>>,
}

impl Outlet {
    pub fn start(settings: Settings, topics: Vec<Topic>, group: GroupHandle, telemetry: Telemetry) -> Result<Outlet> {
        let (flushes, received) = sync_channel(1);
        let (answers, landed) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let carrier = Carrier { settings, topics, group, telemetry, stop: stop.clone() };
        let thread = thread::Builder::new()
            .name("kafka-sink".to_owned())
            .spawn(move || carrier.run(received, answers))
            .context("failed to start the thread of the sink")?;
        Ok(Outlet { flushes: Some(flushes), landed, thread: Some(thread), stop, in_flight: None })
    }
}

impl Exit for Outlet {
    fn send(&mut self, flush: Flush) -> Result<()> {
        debug_assert!(self.in_flight.is_none(), "one flush at a time");
        let flushes = self.flushes.as_ref().context("the sink is stopped")?;
        let valid = Arc::new(AtomicBool::new(true));
        if flushes.send((flush, valid.clone())).is_err() {
            return match self.landed.try_recv() {
                Ok(Landed::Failed(error)) => Err(error.into()),
                _ => Err(anyhow::anyhow!("the sink has stopped")),
            };
        }
        self.in_flight = Some(valid);
        Ok(())
    }

    fn landed(&mut self, wait: Duration) -> Result<Option<Landed>> {
        if self.in_flight.is_none() {
            return Ok(None);
        }
        match self.landed.recv_timeout(wait) {
            Ok(landed) => {
                self.in_flight = None;
                Ok(Some(landed))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the sink has stopped"),
        }
    }

    fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    fn call_off(&mut self) {
        if let Some(valid) = &self.in_flight {
            valid.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.flushes = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                error!("the sink's thread had panicked");
            }
        }
    }
}

/// The sink with the member in whose name it commits.
struct Committing<'a> {
    sink: Sink,
    group: GroupHandle,
    telemetry: &'a Telemetry,
}

impl Transactions for Committing<'_> {
    fn reconnect(&mut self) -> Result<(), KafkaError> {
        self.sink.reconnect()
    }

    fn commit(&mut self, records: &[Outgoing], offsets: &[Offset]) -> Result<(), KafkaError> {
        let _timer = self.telemetry.stages.time(Stage::EffectCommit);
        self.sink.commit(records, offsets, Some(&self.group))
    }

    fn holds(&self, offsets: &[Offset]) -> Result<bool, KafkaError> {
        self.group.holds(offsets)
    }

    fn gone(&self, offsets: &[Offset]) -> Result<Vec<String>, KafkaError> {
        self.group.gone(offsets)
    }
}

struct Carrier {
    settings: Settings,
    topics: Vec<Topic>,
    group: GroupHandle,
    telemetry: Telemetry,
    stop: Arc<AtomicBool>,
}

impl Carrier {
    fn run(self, flushes: Receiver<(Flush, Arc<AtomicBool>)>, answers: Sender<Landed>) {
        let opened = self.insist("opening the sink", &AtomicBool::new(true), || {
            if !self.topics.is_empty() {
                admin::ensure_topics(&self.settings, &self.topics, TOPICS_TIMEOUT)?;
            }
            Sink::open(&self.settings, STEP_TIMEOUT)
        });
        let sink = match opened {
            Ok(Some(sink)) => sink,
            Ok(None) => return,
            Err(error) => {
                let _ = answers.send(Landed::Failed(error));
                return;
            }
        };
        info!("sink open");
        let mut transactions = Committing { sink, group: self.group.clone(), telemetry: &self.telemetry };
        while let Ok((mut flush, valid)) = flushes.recv() {
            transactions.group = self.group.while_valid(valid.clone());
            let mut again = false;
            let carry = || flush.carry(std::mem::replace(&mut again, true), &mut transactions);
            let landed = match self.insist("committing effects", &valid, carry) {
                Ok(Some(())) => Landed::Done { through: flush.through },
                Ok(None) if !valid.load(Ordering::SeqCst) => {
                    // What it left open would hold up whoever asks for the group's offsets.
                    if let Err(error) = transactions.reconnect() {
                        warn!(error = super::service::chain(&error), "an open transaction is left to its timeout");
                    }
                    Landed::CalledOff
                }
                Ok(None) => return,
                Err(error) => Landed::Failed(error),
            };
            if answers.send(landed).is_err() {
                return;
            }
        }
    }

    /// Tries until it works, waiting longer each time; none where the service stops meanwhile, or it is called off.
    fn insist<T>(
        &self,
        what: &'static str,
        valid: &AtomicBool,
        mut f: impl FnMut() -> Result<T, KafkaError>,
    ) -> Result<Option<T>, KafkaError> {
        let mut wait = RETRY_FIRST;
        loop {
            match f() {
                Ok(done) => return Ok(Some(done)),
                Err(error) if !may_pass(&error) => return Err(error),
                Err(error) => {
                    warn!(what, error = super::service::chain(&error), wait_ms = wait.as_millis() as u64, "retrying")
                }
            }
            if self.stop.load(Ordering::SeqCst) || !valid.load(Ordering::SeqCst) {
                return Ok(None);
            }
            // Half of the wait is left to chance, so that many instances do not come back at the same moment.
            thread::park_timeout(wait / 2 + wait.mul_f64(rand::random::<f64>() / 2.0));
            wait = (wait * 2).min(RETRY_LAST);
        }
    }
}
