//! The running service: source, core, sink, store and HTTP on their threads, started and shut down in order.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::admission::{Admission, warn_of_openness};
use super::clock::WallClock;
use super::closed_loop::{self, ClosedLoop, Tick};
use super::core::{self, Core};
use super::corrector::{self, Corrector, Current};
use super::feed::KafkaFeed;
use super::outlet::Outlet;
use super::partition::Held;
use super::reload::{self, Reloader, Reread};
use super::rules::Rules;
use super::settings::Settings;
use super::{about, clock, conductor, dimensions, instances, resume, tables, upkeep};
use crate::ingest::Decoder;
use crate::kafka::source::Source;
use crate::query::Engine as QueryEngine;
use crate::serve::accounts::Accounts;
use crate::serve::{Api, Bound, Readiness};
use crate::store::{Store, StoreError, TableSpec, columns};
use crate::stream::Engine;
use crate::stream::explain::Explanation;
use crate::telemetry::Telemetry;

/// Batches that wait between the source and the core.
const QUEUE_BATCHES_MAX: usize = 8;

/// Why the service is not ready, by part; ready where empty.
#[derive(Clone, Debug, Default)]
pub struct Obstacles(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Obstacles {
    pub fn set(&self, part: &'static str, why: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, why.into());
    }

    pub fn clear(&self, part: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    fn readiness(&self) -> Readiness {
        let reasons: Vec<String> = {
            let obstacles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            obstacles.iter().map(|(part, why)| format!("{part}: {why}")).collect()
        };
        Readiness { ready: reasons.is_empty(), reasons }
    }
}

/// What the views are doing, as the core last said.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Vec<Explanation>>>);

impl Board {
    pub fn set(&self, views: Vec<Explanation>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = views;
    }

    fn show(&self) -> serde_json::Value {
        serde_json::to_value(&*self.0.lock().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }
}

/// A watcher of ticks, for those who look on: the demo.
pub type OnTick = Box<dyn FnMut(&Tick) + Send>;

/// What whoever starts the service wants of it beside its work.
pub struct Hooks {
    pub on_tick: OnTick,
    /// Told what is really listened on.
    pub bound: Box<dyn FnOnce(&Bound) + Send>,
    /// Where settings are read anew from; without it there is no reload.
    pub reread: Option<Reread>,
}

impl Default for Hooks {
    fn default() -> Self {
        Hooks { on_tick: Box::new(|_| ()), bound: Box::new(|_| ()), reread: None }
    }
}

/// Runs until `shutdown` is done or something fails for good; returns after everything in hand is committed.
pub async fn run(
    settings: Settings,
    telemetry: Telemetry,
    hooks: Hooks,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let Hooks { on_tick, bound, reread } = hooks;
    let settings = Arc::new(settings);
    let obstacles = Obstacles::default();
    obstacles.set("kafka", "no partition is assigned yet");
    let listener = Bound::bind(&settings.serve).await?;
    let engine = engine(&settings).await?;
    let store = Arc::new(Store::open(&settings.store, table_specs(&engine)).await?);
    let query = Arc::new(tables::engine(settings.query.clone(), store.clone(), about::tables(&telemetry)?)?);
    warn_of_openness(&settings.serve, settings.users.as_deref());
    let admission = Admission::new(query.clone(), settings.users.clone())?;
    let board = Board::default();
    let (requests, reloads) = mpsc::channel();
    let (settled, current) =
        watch::channel(Arc::new(Current { settings: settings.clone(), tables: engine.dimensions().to_vec() }));
    let held = Held::default();
    let corrector = Corrector::new(store.clone(), held.clone(), current.borrow().clone(), telemetry.clone());
    let reloader =
        reread.map(|reread| Arc::new(Reloader::new(reread, settled, store.clone(), telemetry.clone(), requests)));
    bound(&listener);
    let api = api(query, admission.accounts.clone(), &telemetry, &obstacles, &board, reloader.as_ref());
    let keeping_up = admission.keep_up(listener.tls().cloned());
    let (stop_serving, serving) = serve(listener, api);
    let stop = Arc::new(AtomicBool::new(false));
    // Of several instances the one that closes windows also sees to the store.
    let on_duty = Arc::new(AtomicBool::new(settings.partials_topic.is_none()));
    let making = Making {
        settings: settings.clone(),
        store: store.clone(),
        telemetry: telemetry.clone(),
        obstacles: obstacles.clone(),
        board,
        held,
        on_tick,
        runtime: tokio::runtime::Handle::current(),
        on_duty: on_duty.clone(),
    };
    let (thread, core_ended) = match settings.partials_topic.clone() {
        None => making.alone(engine, reloads, stop.clone()).await?,
        Some(partials) => making.among_others(engine, partials, stop.clone()).await?,
    };
    let upkeep = upkeep::start(current.clone(), store.clone(), telemetry.clone(), on_duty)?;
    let (committer_stop, committer) = spawn_committer(&settings, &store, &telemetry, &obstacles);
    telemetry.reloads.taken_up(clock::now_secs());
    let correcting = tokio::spawn(corrector.run(current));
    let on_hangup = reloader.map(|reloader| tokio::spawn(reload::on_hangup(reloader)));
    let workers = Workers { stop, thread, core_ended, committer_stop, committer };
    let done = workers.work_until(shutdown, &store).await;
    on_hangup.inspect(JoinHandle::abort);
    correcting.abort();
    keeping_up.abort();
    tokio::task::spawn_blocking(move || drop(upkeep)).await?;
    let _ = stop_serving.send(());
    serving.await??;
    done?;
    info!("everything in hand is committed");
    Ok(())
}

/// What a core's thread is made of.
struct Making {
    settings: Arc<Settings>,
    store: Arc<Store>,
    telemetry: Telemetry,
    obstacles: Obstacles,
    board: Board,
    held: Held,
    on_tick: OnTick,
    runtime: tokio::runtime::Handle,
    /// Set while this instance is the one that sees to the store.
    on_duty: Arc<AtomicBool>,
}

impl Making {
    /// Starts the one instance of a group, which does everything.
    async fn alone(self, engine: Engine, reloads: mpsc::Receiver<reload::Request>, stop: Arc<AtomicBool>) -> Started {
        let Making { settings, store, telemetry, obstacles, board, held, on_tick, runtime, .. } = self;
        let mut core = build_core(&settings, engine, &store, &telemetry).await?;
        core.held = held;
        let (source, events) = Source::start(&settings.kafka, QUEUE_BATCHES_MAX)?;
        let (wanted, group) = (settings.topics_wanted.clone(), source.group());
        let outlet = Outlet::start(settings.kafka.clone(), wanted, group, telemetry.clone())?;
        let source = KafkaFeed { source, events };
        let parts = conductor::Parts {
            core,
            settings,
            store,
            telemetry,
            obstacles,
            board,
            source,
            outlet,
            clock: WallClock,
            reloads,
            runtime,
            on_tick,
        };
        spawn_core(move || conductor::conduct(parts, stop))
    }

    /// Starts one of several instances.
    async fn among_others(self, engine: Engine, partials: String, stop: Arc<AtomicBool>) -> Started {
        let Making { settings, store, telemetry, obstacles, board, on_tick, runtime, on_duty, .. } = self;
        let core = new_core(&settings, engine.gathering(), &store, &telemetry).await?;
        let parts = instances::Parts {
            settings,
            store,
            telemetry,
            obstacles,
            board,
            on_tick,
            core,
            partials,
            runtime,
            on_duty,
        };
        spawn_core(move || instances::conduct(parts, stop))
    }
}

/// A thread, and how it ended.
type Started = Result<(thread::JoinHandle<()>, Ended)>;

/// The core's thread and the committer, at work.
struct Workers {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
    core_ended: Ended,
    committer_stop: watch::Sender<bool>,
    committer: JoinHandle<Result<()>>,
}

impl Workers {
    /// Lets them work until `shutdown` is done or one of them ends, then ends the other and commits what is in hand.
    async fn work_until(self, shutdown: impl Future<Output = ()>, store: &Store) -> Result<()> {
        let Workers { stop, thread, mut core_ended, committer_stop, mut committer } = self;
        let result = tokio::select! {
            () = shutdown => None,
            ended = &mut core_ended => Some(ended.context("the core's thread ended without a word").and_then(|r| r)),
            failed = &mut committer => Some(failed.context("the committer ended without a word").and_then(|r| r)),
        };
        info!("shutting down");
        stop.store(true, Ordering::SeqCst);
        let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
        if joined.is_err() {
            error!("the core's thread had panicked");
        }
        // Told to stop, the core still has its last words: what it could not commit must not pass for a clean end.
        let result = match result {
            None => core_ended.await.context("the core's thread ended without a word").and_then(|r| r),
            Some(ended) => ended,
        };
        let _ = committer_stop.send(true);
        if !committer.is_finished() {
            let _ = committer.await;
        }
        result?;
        store.commit().await?;
        Ok(())
    }
}

type Ended = oneshot::Receiver<Result<()>>;

/// Starts the core's thread; how it ended is told too.
fn spawn_core(work: impl FnOnce() -> Result<()> + Send + 'static) -> Started {
    let (ended, core_ended) = oneshot::channel();
    let thread = thread::Builder::new().name("core".to_owned()).spawn(move || {
        let _ = ended.send(work());
    });
    Ok((thread.context("failed to start the core's thread")?, core_ended))
}

/// Plans the views.
pub async fn engine(settings: &Settings) -> Result<Engine> {
    let events = columns::record_tables().into_iter().find(|table| table.name == "events");
    let events = events.context("the table events is one of ours")?;
    let tables = dimensions::read(&settings.dimensions).await?;
    Ok(match settings.partials_topic {
        None => Engine::new(settings.views.clone(), &tables, &events.schema).await?,
        Some(_) => Engine::of_several(settings.views.clone(), &tables, &events.schema).await?,
    })
}

/// Returns every table, in the order of their commits.
pub fn table_specs(engine: &Engine) -> Vec<TableSpec> {
    let mut specs = columns::record_tables();
    for (view, schema) in engine.views() {
        specs.push(columns::spec_of(&view.name, schema));
    }
    let corrected = engine.views().filter(|(view, _)| view.correct_every.is_some());
    specs.extend(corrected.map(|(view, schema)| corrector::table_spec(view, &schema)));
    specs.extend(columns::loop_tables());
    specs
}

/// Plans the rules over the views.
pub fn rules(settings: &Settings, engine: &Engine) -> impl Future<Output = Result<Rules>> + use<> {
    let views = engine.views().map(|(view, schema)| (view.name.to_string(), schema, view.window.slide()));
    Rules::new(settings.rules.clone(), views.collect())
}

/// Builds the core and brings it to where the store stands.
pub async fn build_core(
    settings: &Settings,
    engine: Engine,
    store: &Arc<Store>,
    telemetry: &Telemetry,
) -> Result<Core> {
    let mut core = new_core(settings, engine, store, telemetry).await?;
    resume::core(&mut core, store).await?;
    Ok(core)
}

/// Builds a core that knows the stored series and no more.
pub async fn new_core(settings: &Settings, engine: Engine, store: &Arc<Store>, telemetry: &Telemetry) -> Result<Core> {
    let closed_loop = ClosedLoop::new(loop_parts(settings, rules(settings, &engine).await?))?;
    for input in &settings.inputs {
        telemetry.input.declare(&input.topic);
    }
    for view in &settings.views {
        telemetry.views.declare(&view.name);
    }
    Ok(Core::new(core::Parts {
        inputs: settings.inputs.clone(),
        decoders: decoders(settings),
        interner: resume::series(store, settings.series_max).await?,
        engine,
        closed_loop,
        store: store.clone(),
        topics: settings.topics.clone(),
        telemetry: telemetry.clone(),
    }))
}

/// Returns what the closed loop is made of.
pub fn loop_parts(settings: &Settings, rules: Rules) -> closed_loop::Parts {
    closed_loop::Parts {
        interval: settings.evaluation_interval,
        insight: settings.insight.clone(),
        rules,
        targets: settings.targets.clone(),
        slides: settings.slides(),
    }
}

/// Returns a decoder for each input.
pub fn decoders(settings: &Settings) -> Vec<Box<dyn Decoder>> {
    settings.inputs.iter().map(|input| crate::ingest::decoder(input.format, settings.limits.clone())).collect()
}

fn api(
    query: Arc<QueryEngine>,
    accounts: Accounts,
    telemetry: &Telemetry,
    obstacles: &Obstacles,
    board: &Board,
    reloader: Option<&Arc<Reloader>>,
) -> Api {
    let (obstacles, board) = (obstacles.clone(), board.clone());
    let reload = reloader.cloned().map(|reloader| -> crate::serve::Reload {
        Arc::new(move || {
            let reloader = reloader.clone();
            Box::pin(async move {
                // It goes on where who asked for it goes away.
                let reloading = tokio::spawn(async move { reloader.reload().await });
                let report = reloading.await.map_err(|why| why.to_string())?.map_err(|why| format!("{why:#}"))?;
                serde_json::to_value(report).map_err(|why| why.to_string())
            })
        })
    });
    Api {
        query,
        accounts,
        telemetry: telemetry.clone(),
        ready: Arc::new(move || obstacles.readiness()),
        views: Arc::new(move || board.show()),
        reload,
    }
}

type Serving = (oneshot::Sender<()>, JoinHandle<Result<()>>);

fn serve(listener: Bound, api: Api) -> Serving {
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        listener.serve(api, stopped).await.map_err(anyhow::Error::from)
    });
    (stop, serving)
}

type Committing = (watch::Sender<bool>, JoinHandle<Result<()>>);

/// Commits the store at its interval. A failure that may pass is tried again, later each time, while reads and alerts go
/// on; one that cannot pass ends the service.
fn spawn_committer(
    settings: &Settings,
    store: &Arc<Store>,
    telemetry: &Telemetry,
    obstacles: &Obstacles,
) -> Committing {
    let (stop, mut stopped) = watch::channel(false);
    let (store, telemetry, obstacles) = (store.clone(), telemetry.clone(), obstacles.clone());
    let (interval, shared) = (settings.store.commit_interval, settings.store.shared);
    let task = tokio::spawn(async move {
        let mut failures = 0u32;
        loop {
            let wait = interval * 2u32.saturating_pow(failures.min(5));
            tokio::select! {
                _ = stopped.changed() => return Ok(()),
                () = tokio::time::sleep(wait.min(Duration::from_secs(60))) => {}
            }
            match commit(&store, &telemetry).await {
                Ok(()) => {
                    failures = 0;
                    obstacles.clear("store");
                }
                Err(error) if error.retriable() => {
                    failures += 1;
                    obstacles.set("store", chain(&error));
                }
                Err(error) => return Err(error.into()),
            }
            if shared && let Err(error) = store.refresh().await {
                warn!(error = chain(&error), "what other instances stored is shown later");
            }
        }
    });
    (stop, task)
}

/// Commits the store and tells telemetry.
pub async fn commit(store: &Store, telemetry: &Telemetry) -> Result<(), StoreError> {
    let timer = telemetry.stages.time(crate::telemetry::instruments::Stage::StoreCommit);
    let done = store.commit().await;
    drop(timer);
    telemetry.store.set_head(store.head_rows(), store.head_bytes());
    match done {
        Ok(stats) if stats.tables > 0 => telemetry.store.committed(),
        Ok(_) => {}
        Err(error) => {
            telemetry.store.commit_failed();
            warn!(error = chain(&error), "store commit failed");
            return Err(error);
        }
    }
    if let Err(error) = store.maintain().await {
        warn!(error = chain(&error), "a checkpoint was not written; the next is tried later");
    }
    Ok(())
}

/// Returns an error with its causes, on one line; a cause that repeats what was said is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}
