//! One simulation: the real conductor, core, engine, loop and store, born, killed and born again in a world of chance,
//! until everything is read and said. The same seed gives the same simulation.

use std::cell::RefCell;
use std::io::{Error, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Runtime};

use super::feed::{Ending, Reloader, SimulatedFeed, THE_ONE};
use super::kafka::{Broken, CLUSTER};
use super::log::{self, LATENESS, Log};
use super::model;
use super::outcome::{self, Outcome, Unsure};
use super::process::{Carrier, Committer, SimulatedClock, SimulatedExit};
use super::world::{At, Crash, Doom, Shared, Trouble, World};
use crate::config;
use crate::decide::rule::Rule;
use crate::kafka::source::Partition;
use crate::run::conductor::{self, conduct};
use crate::run::core::VIEW_APP;
use crate::run::corrector::{Corrector, Current};
use crate::run::service::{self, Board, Obstacles};
use crate::run::settings::Settings;
use crate::store::tests::faulty::{Fault, Faults, Operation};
use crate::store::tests::open_simulated;
use crate::store::tests::simulated_disk::{Forgets, Leaves, SimulatedDisk};
use crate::store::{Store, StoreError};
use crate::stream::definition::Definitions;
use crate::telemetry::Telemetry;

/// Processes after which nothing goes wrong any more but what the plan says of each.
const STARTS_MAX: u64 = 25;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Whether anything goes wrong at all.
    pub disturbed: bool,
    /// Whether records come too late, and partitions are called idle.
    pub is_late: bool,
    pub broken: Broken,
}

impl Plan {
    pub fn disturbed(seed: u64) -> Plan {
        Plan { seed, disturbed: true, is_late: seed % 4 == 3, broken: Broken::Nothing }
    }

    /// Returns the log of this plan: several plans share one.
    pub fn log(&self) -> u64 {
        self.seed / 4
    }
}

/// What a simulation gave.
pub struct Simulated {
    pub outcome: Result<Outcome, String>,
    pub story: Vec<String>,
}

/// Runs a simulation to its end.
pub fn simulate(plan: Plan, log: &Log) -> Simulated {
    let mut machine = Machine::new(plan, log);
    let outcome = machine.run();
    let story = std::mem::take(&mut machine.world.borrow_mut().story);
    Simulated { outcome, story }
}

/// The machine that processes run on, and the world around it.
struct Machine {
    plan: Plan,
    world: Shared,
    runtime: Runtime,
    /// The folders it had, the newest last: a power cut leaves another.
    folders: Vec<tempfile::TempDir>,
    /// None where the store is on an object store that fails now and then.
    disk: Option<Arc<SimulatedDisk>>,
    faults: Arc<Faults>,
    random: StdRng,
}

impl Machine {
    fn new(plan: Plan, log: &Log) -> Machine {
        let mut random = StdRng::seed_from_u64(plan.seed ^ 0xbe11);
        let trouble = if plan.disturbed {
            let [transactions, rebalances, outages, reloads] =
                [[0.0, 0.1, 0.4], [0.0, 0.01, 0.05], [0.0, 0.0, 0.03], [0.0, 0.0, 0.02]]
                    .map(|of| of[random.random_range(0..3)]);
            Trouble { transactions, rebalances, outages, reloads }
        } else {
            Trouble::default()
        };
        let mut broker = log.broker();
        broker.broken = plan.broken;
        let world = World::new(plan.seed, broker, trouble);
        if random.random_bool(0.3) {
            // All of it was there before the first process was.
            world.borrow_mut().produce(usize::MAX >> 1);
        }
        let forgets =
            Forgets { bytes: plan.broken == Broken::BytesForgotten, names: plan.broken == Broken::NamesForgotten };
        let needs_disk = forgets.bytes || forgets.names;
        let on_disk = needs_disk || (plan.disturbed && random.random_bool(0.7));
        Machine {
            plan,
            world,
            runtime: Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
            folders: vec![tempfile::tempdir().unwrap()],
            disk: on_disk.then(|| Arc::new(SimulatedDisk::new(forgets))),
            faults: Faults::none(),
            random,
        }
    }

    fn folder(&self) -> PathBuf {
        self.folders.last().unwrap().path().join("data")
    }

    fn run(&mut self) -> Result<Outcome, String> {
        let deaths = if self.plan.disturbed { self.random.random_range(1..5) } else { 0 };
        for start in 0.. {
            if start > STARTS_MAX {
                return Err(format!("still not done after {start} processes"));
            }
            let (ending, doom) = if start < deaths { self.fate() } else { (Ending::Finishes, None) };
            self.world.borrow_mut().tell(format!("process {start}: {ending:?}, {doom:?}"));
            let doom = Doom::new(doom);
            self.world.borrow_mut().doom = doom.clone();
            let lived = catch_unwind(AssertUnwindSafe(|| self.live(start, ending, &doom)));
            let done = match lived {
                Ok(Ok(())) if !doom.is_dead() => ending == Ending::Finishes,
                Ok(Err(error)) if !doom.is_dead() && !is_expected(&error) => return Err(format!("{error:?}")),
                Ok(Err(error)) if !doom.is_dead() => {
                    // The folder has another name each time.
                    let told = format!("{error:#}").replace(&self.folder().display().to_string(), "the store");
                    self.world.borrow_mut().tell(format!("the process gives up: {told}"));
                    false
                }
                Ok(_) => false,
                Err(panic) if panic.is::<Crash>() => false,
                Err(panic) => resume_unwind(panic),
            };
            if done {
                break;
            }
            doom.die();
            self.cut_power();
        }
        self.world.borrow_mut().broker.end_open();
        let world = self.world.borrow();
        let (torn, ahead) = (world.torn.clone(), world.ahead.clone());
        let unsure = Unsure { torn, ahead };
        self.runtime.block_on(Outcome::read(&self.folder(), world.broker.effects.clone(), unsure))
    }

    /// Says how the next process ends.
    fn fate(&mut self) -> (Ending, Option<(At, usize)>) {
        let random = &mut self.random;
        if random.random_bool(0.15) {
            return (Ending::Stops(random.random_range(1..80)), None);
        }
        let (at, most) =
            [(At::Turn, 120), (At::Clock, 900), (At::Transaction, 8), (At::Landed, 8), (At::Put, 60), (At::Disk, 700)]
                [random.random_range(0..if self.disk.is_some() { 6 } else { 5 })];
        (Ending::Dies, Some((at, random.random_range(0..most))))
    }

    /// After a death: the power may have gone with it.
    fn cut_power(&mut self) {
        let Some(disk) = &self.disk else { return };
        let forgets = self.plan.broken == Broken::BytesForgotten || self.plan.broken == Broken::NamesForgotten;
        if !forgets && self.random.random_bool(0.4) {
            return;
        }
        let all = [Leaves::Nothing, Leaves::Names, Leaves::Everything, Leaves::Anything];
        let leaves = all[self.random.random_range(0..all.len())];
        let trace = disk.trace();
        let left = tempfile::tempdir().unwrap();
        let top = self.folders.last().unwrap().path();
        trace.after_cut(trace.steps(), top, leaves, &mut self.random, left.path());
        let forgets = Forgets {
            bytes: self.plan.broken == Broken::BytesForgotten,
            names: self.plan.broken == Broken::NamesForgotten,
        };
        self.disk = Some(Arc::new(SimulatedDisk::holding(left.path(), forgets)));
        self.folders.push(left);
        self.world.borrow_mut().tell(format!("the power goes, and leaves {leaves:?}"));
    }

    /// Lets a process live until it ends, or unwinds as a crash.
    fn live(&mut self, start: u64, ending: Ending, doom: &Doom) -> Result<()> {
        let is_stepping = Arc::new(AtomicBool::new(false));
        self.misbehave(start, doom, &is_stepping);
        let settings = Arc::new(settings(&self.folder(), self.plan.is_late)?);
        let telemetry = Telemetry::default();
        let (store, core) = self.runtime.block_on(async {
            let engine = service::engine(&settings).await?;
            let specs = service::table_specs(&engine);
            let store = open_simulated(&settings.store, specs, self.disk.clone(), &self.faults).await?;
            let store = Arc::new(store);
            let core = service::build_core(&settings, engine, &store, &telemetry).await?;
            anyhow::Ok((store, core))
        })?;
        let current = Arc::new(Current { settings: settings.clone(), tables: Vec::new() });
        let corrector = Corrector::new(store.clone(), core.held.clone(), current, telemetry.clone());
        self.note_unsure(&store)?;
        let world = self.world.clone();
        let committer = Rc::new(RefCell::new(Committer {
            world: world.clone(),
            runtime: self.runtime.handle().clone(),
            store: store.clone(),
            telemetry: telemetry.clone(),
            faults: self.faults.clone(),
            is_stepping,
            running: None,
            failed: None,
            corrector: (self.plan.broken != Broken::Uncorrected).then_some((corrector, settings.clone())),
        }));
        let carrier = Rc::new(RefCell::new(Carrier::new(world.clone(), THE_ONE)));
        let stop = Arc::new(AtomicBool::new(false));
        {
            let broker = &mut world.borrow_mut().broker;
            broker.members.clear();
            broker.is_away = false;
        }
        let (feeds, committing, carrying) = (world.clone(), committer.clone(), carrier.clone());
        let (requests, reloads) = std::sync::mpsc::channel();
        let reloader = Reloader { runtime: self.runtime.handle().clone(), settings: settings.clone(), requests };
        let parts = conductor::Parts {
            core,
            settings,
            store: store.clone(),
            telemetry,
            obstacles: Obstacles::default(),
            board: Board::default(),
            source: SimulatedFeed::new(feeds, committing, carrying, stop.clone(), reloader, ending, start),
            outlet: SimulatedExit(carrier),
            clock: SimulatedClock { world, committer: committer.clone() },
            reloads,
            runtime: self.runtime.handle().clone(),
            on_tick: Box::new(|_| ()),
        };
        conduct(parts, stop)?;
        self.runtime.block_on(store.commit())?;
        if ending == Ending::Finishes {
            committer.borrow_mut().correct();
            self.runtime.block_on(store.commit())?;
        }
        Ok(())
    }

    /// Notes of which records it will be decided twice whether they are late: their rows or the closing of their windows
    /// died with the last process, and only the table `late`, or an effect, remembers.
    fn note_unsure(&self, store: &Store) -> Result<()> {
        let world = &mut *self.world.borrow_mut();
        world.broker.end_open();
        for partition in world.broker.partitions() {
            let id = &world.broker.inputs[&partition.topic].id;
            let app = format!("{CLUSTER}/{id}/{}", partition.partition);
            let table = if &*partition.topic == log::NUMBERS { "samples" } else { "events" };
            let at = |table: &str| self.runtime.block_on(store.position(table, &app));
            let (stored, late) = (at(table)?.unwrap_or(0), at("late")?.unwrap_or(0));
            if stored < late {
                world.torn.push((partition.clone(), stored..late));
            }
            let sent = world.broker.committed(&partition).unwrap_or(0);
            if stored < sent {
                world.ahead.push((partition, stored..sent));
            }
        }
        let late = self.runtime.block_on(outcome::table(store.pin(), "late")).map_err(anyhow::Error::msg)?;
        for row in &late {
            let view = row["view"].as_str().unwrap_or_default();
            let through = self.runtime.block_on(store.position(view, VIEW_APP))?;
            if row["closed_through"].as_i64() > through {
                let topic = row["topic"].as_str().unwrap_or_default();
                let (partition, offset) = (row["partition"].as_i64().unwrap(), row["offset"].as_i64().unwrap());
                let partition = Partition { topic: topic.into(), partition: partition as i32 };
                world.torn.push((partition, offset..offset + 1));
            }
        }
        Ok(())
    }

    /// Says what goes wrong below the store: nothing but the death of the process, or errors now and then as well.
    fn misbehave(&mut self, start: u64, doom: &Doom, is_stepping: &Arc<AtomicBool>) {
        let likely = match self.plan.disturbed && start < 8 {
            true => [0.0, 0.0, 0.01, 0.1][self.random.random_range(0..4)],
            false => 0.0,
        };
        let mut random = StdRng::seed_from_u64(self.plan.seed ^ (start << 32));
        let (doom_of_disk, seed) = (doom.clone(), random.random());
        if let Some(disk) = &self.disk {
            let mut random = StdRng::seed_from_u64(seed);
            disk.fail(move |_, _| {
                if doom_of_disk.step(At::Disk) {
                    return Some(Error::other("the process is dead"));
                }
                random.random_bool(likely / 10.0).then(|| Error::from(ErrorKind::StorageFull))
            });
        }
        let (doom, is_stepping, has_disk) = (doom.clone(), is_stepping.clone(), self.disk.is_some());
        self.faults.decide(move |operation, _| {
            if operation == Operation::Read {
                return Fault::None;
            }
            if doom.step(At::Put) {
                return Fault::Before;
            }
            if !has_disk && random.random_bool(likely) {
                return match random.random_range(0..3) {
                    0 => Fault::Before,
                    1 => Fault::After,
                    _ => Fault::Late(random.random_range(1..40)),
                };
            }
            if is_stepping.load(Ordering::SeqCst) { Fault::Hang } else { Fault::None }
        });
    }
}

/// Tells whether a process may end so without having died: after a restart all must be well.
pub fn is_expected(error: &anyhow::Error) -> bool {
    let passes = |error: &StoreError| error.retriable() || matches!(error, StoreError::Fenced { .. });
    let of_disk = |error: &StoreError| matches!(error, StoreError::Folder { .. } | StoreError::Sync { .. });
    let text = format!("{error:#}");
    error.downcast_ref::<StoreError>().is_some_and(|error| passes(error) || of_disk(error))
        || text.contains("another producer took over")
}

/// Returns the settings of the service under test.
pub fn settings(folder: &std::path::Path, is_late: bool) -> Result<Settings> {
    let set = |name: &str, value: String| (format!("BELLWETHER_{name}"), value);
    let input = |(topic, format): (Arc<str>, &str)| {
        format!("{{topic = {topic:?}, format = {format:?}, dead_letter_topic = \"out.dead\"}}")
    };
    let typed = [
        set("INPUTS", format!("[{}]", log::topics().map(input).join(", "))),
        set("STORE__URL", folder.display().to_string()),
        set("LIMITS__AGE_MAX", "36500d".to_owned()),
        set("STREAM__LATENESS", format!("{LATENESS}s")),
        set("STREAM__IDLE_TIMEOUT", if is_late { "8s" } else { "24h" }.to_owned()),
        set("STREAM__EVALUATION_INTERVAL", "10s".to_owned()),
        set("TOPICS__ALERTS", "out.alerts".to_owned()),
        set("TOPICS__DECISIONS", "out.decisions".to_owned()),
        set("TOPICS__ANOMALIES", "out.anomalies".to_owned()),
        set("TOPICS__FORECASTS", "out.forecasts".to_owned()),
    ];
    let mut settings = Settings::of(&config::load(None, typed.into_iter())?)?;
    let views = [model::LOAD_10S, model::LOAD_1M_BY_20S, model::LOAD_1M, model::FAILURES_30S, model::BUSY];
    let files: Vec<(String, &str)> = views.iter().enumerate().map(|(at, text)| (format!("{at}.sql"), *text)).collect();
    settings.views = Definitions::read(&files, settings.view_defaults)?.views;
    // What is read twice, and what is read out of another, with all kinds of windows that can be corrected.
    for view in settings.views.iter_mut().filter(|view| is_late && &*view.name != "busy") {
        view.correct_every = Some(Duration::from_secs(1));
    }
    settings.rules = vec![Rule::parse("load_high.sql", model::LOAD_HIGH)?, Rule::parse("failing.sql", model::FAILING)?];
    settings.insight = serde_json::from_value(serde_json::json!({
        "anomalies": [{"view": "load_10s", "column": "total", "by": ["key"]}],
    }))?;
    settings.targets = vec![serde_json::from_value(serde_json::json!({
        "target": "a", "view": "load_10s", "column": "total", "key": {"key": "a"}, "capacity_per_replica": 20.0,
        "replicas_max": 40, "cooldown": "30s", "startup": "10s", "stale_after": "1m", "history_min": 3,
    }))?];
    settings.flush_interval = Duration::from_millis(100);
    Ok(settings)
}
