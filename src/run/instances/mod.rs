//! Several instances of one group, sharing the work. Each gathers: it reads its own share of the inputs, stores the rows,
//! and sends partial states of the windows into one topic. One finishes: the owner of that topic's partition merges the
//! states, closes the windows, and runs the loop.
//!
//! The topic is a log: whoever becomes its owner reads again what the open windows are made of. A gatherer keeps nothing
//! that is not in the log, or read again. So no state is handed over when an instance comes, goes or dies.

mod finisher;
mod gatherer;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Handle;
use tracing::warn;

use super::clock::{Clock, WallClock};
use super::core::Core;
use super::feed::KafkaFeed;
use super::outlet::{Exit, Outlet};
use super::partition::Emitted;
use super::service::{self, Board, Obstacles, OnTick};
use super::settings::Settings;
use crate::kafka::committed::Committed;
use crate::kafka::source::Source;
use crate::kafka::{self, admin};
use crate::model::time::EventTime;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;
use finisher::Finisher;
use gatherer::Gatherer;

/// Work that was in hand is somebody else's by now. Nothing is lost: started anew, an instance takes up what is its own.
#[derive(Debug, thiserror::Error)]
#[error("{0} (nothing is lost: it is read again)")]
struct Overtaken(String);

/// Tells whether an instance that failed may simply start anew: others went on with what it had in hand, or the store could
/// not be read for a moment.
pub fn may_start_anew(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let of_store = cause.downcast_ref::<StoreError>();
        cause.is::<Overtaken>()
            || of_store.is_some_and(|error| error.retriable() || matches!(error, StoreError::Fenced { .. }))
    })
}

/// How long a thread waits for its source before it looks at its other duties.
const PATIENCE: Duration = Duration::from_millis(20);
/// Offsets that moved without an effect are committed at least this often.
const OFFSETS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a shutdown or a rebalance waits for the last flush.
const LAST_FLUSH: Duration = Duration::from_secs(30);
/// Effects that may wait while their sink is away, before records are made to wait too.
const OUTBOX_MAX: usize = 200_000;
/// How long the deletion of records that are not needed may take.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);
const GAUGES_INTERVAL: Duration = Duration::from_secs(1);
/// How long a question to the broker may hold up a thread.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Batches that wait between a source and its thread.
const QUEUE_BATCHES_MAX: usize = 8;

/// Tells how far metrics and events have come, as the finisher last said.
type Frontiers = Box<dyn FnMut() -> Result<[Option<EventTime>; 2]>>;
/// Deletes the partial states before an offset, beside everything else.
type Trim = Arc<dyn Fn(i64) + Send + Sync>;

/// What both parts of an instance have in common.
#[derive(Clone)]
struct Shared<C> {
    settings: Arc<Settings>,
    store: Arc<Store>,
    telemetry: Telemetry,
    obstacles: Obstacles,
    clock: C,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    /// The topic of partial states.
    partials: String,
    trim: Trim,
    /// The name of this instance.
    instance: String,
    on_duty: Arc<AtomicBool>,
}

impl<C> Shared<C> {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// What an instance is started with.
pub struct Parts {
    pub settings: Arc<Settings>,
    pub store: Arc<Store>,
    pub telemetry: Telemetry,
    pub obstacles: Obstacles,
    pub board: Board,
    pub on_tick: OnTick,
    /// For what is gathered here.
    pub core: Core,
    pub partials: String,
    pub runtime: Handle,
    /// Set while this instance finishes windows.
    pub on_duty: Arc<AtomicBool>,
}

/// Runs both parts until told to stop or one of them fails; the other is stopped then, too.
pub fn conduct(parts: Parts, stop: Arc<AtomicBool>) -> Result<()> {
    let Parts { settings, store, telemetry, obstacles, board, on_tick, core, partials, runtime, on_duty } = parts;
    let instance = settings.config.service.instance.clone();
    let finish = for_finishing(&settings.kafka, &partials);
    let trim = trim(settings.kafka.clone(), partials.clone(), runtime.clone());
    let shared = Shared {
        settings,
        store,
        telemetry,
        obstacles,
        clock: WallClock,
        runtime,
        stop: stop.clone(),
        partials,
        trim,
        instance,
        on_duty,
    };
    let (source, outlet) = connect(&shared, shared.settings.kafka.clone(), true)?;
    let gatherer = Gatherer::new(shared.clone(), core, source, outlet, frontiers(&finish, &shared.partials)?);
    let (source, outlet) = connect(&shared, finish, false)?;
    let finisher = Finisher::new(shared, source, outlet, board, on_tick);
    let finishing = thread::Builder::new().name("finisher".to_owned()).spawn({
        let stop = StopAll(stop.clone());
        move || {
            // Also where it panics: the other part alone would look healthy.
            let _stop = stop;
            finisher.run()
        }
    });
    let finishing = finishing.context("failed to start the thread of the finisher")?;
    let gathered = gatherer.run();
    stop.store(true, Ordering::SeqCst);
    let finished = finishing.join().map_err(|_| anyhow!("the finisher's thread had panicked"))?;
    gathered.and(finished)
}

/// Stops both parts of an instance when one of them ends.
struct StopAll(Arc<AtomicBool>);

impl Drop for StopAll {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One that is not allowed to delete keeps the topic whole.
fn trim(kafka: kafka::settings::Settings, partials: String, runtime: Handle) -> Trim {
    Arc::new(move |before| {
        let (kafka, partials) = (kafka.clone(), partials.clone());
        runtime.spawn_blocking(move || {
            if let Err(error) = admin::delete_before(&kafka, &partials, 0, before, TRIM_TIMEOUT) {
                warn!(error = service::chain(&error), "partial states that are not needed any more were not deleted");
            }
        });
    })
}

/// Returns how the finisher reaches Kafka: as a group of its own over the topic of partial states.
fn for_finishing(kafka: &kafka::settings::Settings, partials: &str) -> kafka::settings::Settings {
    let mut finish = kafka.clone();
    finish.group_id.push_str(".finish");
    finish.transactional_id.push_str(".finish");
    finish.topics = vec![partials.to_owned()];
    if let Some(id) = finish.client.get_mut("group.instance.id") {
        id.push_str(".finish");
    }
    finish
}

fn connect<C: Clock>(
    shared: &Shared<C>,
    kafka: kafka::settings::Settings,
    makes_topics: bool,
) -> Result<(KafkaFeed, Outlet)> {
    let (source, events) = Source::start(&kafka, QUEUE_BATCHES_MAX)?;
    let topics = if makes_topics { shared.settings.topics_wanted.clone() } else { Vec::new() };
    let outlet = Outlet::start(kafka, topics, source.group(), shared.telemetry.clone())?;
    Ok((KafkaFeed { source, events }, outlet))
}

/// Asks for what the finisher committed last.
fn frontiers(finish: &kafka::settings::Settings, partials: &str) -> Result<Frontiers> {
    let mut committed = Committed::open(finish)?;
    let partials = partials.to_owned();
    Ok(Box::new(move || {
        let metadata = committed.metadata(&partials, 1, QUESTION_TIMEOUT)?;
        let said = metadata.get(&0).and_then(|metadata| Emitted::parse(metadata)?.frontiers_micros);
        Ok(said.unwrap_or_default().map(|micros| micros.map(EventTime::from_micros)))
    }))
}

/// Ends what a last flush began: the store takes what it holds, and a flush that has not landed is called off.
///
/// # Errors
/// It has not landed. It must not be sent later, when the partitions may be somebody else's.
fn come_to_rest<C: Clock>(shared: &Shared<C>, outlet: &mut impl Exit) -> Result<()> {
    let unsent = outlet.in_flight().then(|| unsent(outlet));
    commit_store(shared)?;
    unsent.map_or(Ok(()), Err)
}

/// Calls off a flush that has not landed in time.
fn unsent(outlet: &mut impl Exit) -> anyhow::Error {
    outlet.call_off();
    Overtaken(format!("what was in hand could not be sent within {LAST_FLUSH:?}")).into()
}

/// Commits the store, again and again where that may help: to go on with rows uncommitted would have them read, and
/// stored, again.
fn commit_store<C: Clock>(shared: &Shared<C>) -> Result<()> {
    let mut wait = PATIENCE;
    loop {
        match shared.runtime.block_on(service::commit(&shared.store, &shared.telemetry)) {
            Err(error) if error.retriable() && !shared.is_stopped() => {
                shared.clock.wait(wait);
                wait = (wait * 2).min(Duration::from_secs(10));
            }
            done => return Ok(done?),
        }
    }
}
