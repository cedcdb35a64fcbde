//! The real gatherers and finishers of up to three instances, on one Kafka in memory and one store in a folder: they join,
//! leave, die at any step, freeze, and are left behind, and what they said together is held against a naive model.
//!
//! `BELLWETHER_SIM_SEEDS`, `BELLWETHER_SIM_FIRST` and `BELLWETHER_SIM_SEED` as for one instance.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Runtime};

use super::super::finisher::Finisher;
use super::super::gatherer::Gatherer;
use super::super::{Shared, may_start_anew};
use super::group::{Group, GroupClock, GroupFeed};
use crate::kafka::source::Partition;
use crate::model::time::EventTime;
use crate::run::partition::Emitted;
use crate::run::service::{self, Board, Obstacles};
use crate::run::settings::Settings;
use crate::run::tests::kafka::{Broken, PARTIALS, Who};
use crate::run::tests::log::{self, Log};
use crate::run::tests::outcome::{Outcome, Unsure};
use crate::run::tests::process::{Carrier, SimulatedExit};
use crate::run::tests::world::{self, At, Crash, Doom, Trouble, World};
use crate::run::tests::{for_each_seed, seeds, simulation};
use crate::store::Store;
use crate::store::tests::faulty::{Fault, Faults, Operation};
use crate::store::tests::open_simulated;
use crate::telemetry::Telemetry;

const INSTANCES_MAX: usize = 3;
/// What goes wrong at most; then they are left alone.
const MISHAPS_MAX: usize = 15;
/// So many steps without anything said or read, and all is done.
const QUIET_STEPS: usize = 400;
/// Far more steps than anything takes.
const STEPS_MAX: usize = 60_000;

type TheGatherer = Gatherer<GroupFeed, SimulatedExit, GroupClock>;
type TheFinisher = Finisher<GroupFeed, SimulatedExit, GroupClock>;

/// One instance, while it lives.
struct Instance {
    number: usize,
    /// As members: of those who gather, and of those who finish.
    whos: [Who; 2],
    carriers: [Rc<RefCell<Carrier>>; 2],
    gatherer: TheGatherer,
    finisher: TheFinisher,
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    doom: Doom,
    /// Steps that it stands still for.
    frozen: usize,
}

/// What an instance is to do next.
#[derive(Clone, Copy)]
enum Step {
    Gather,
    Finish,
    Commit,
}

struct Machine {
    world: world::Shared,
    runtime: Runtime,
    _folder: tempfile::TempDir,
    settings: Arc<Settings>,
    groups: [Rc<RefCell<Group>>; 2],
    instances: Vec<Instance>,
    /// Members that died, and the steps until their groups notice.
    dead: Vec<(Who, usize)>,
    trimmed: Arc<AtomicI64>,
    next_who: Who,
    mishaps_left: usize,
    /// Steps until the brokers are back.
    away_for: usize,
    random: StdRng,
}

struct Simulated {
    outcome: Result<Outcome, String>,
    story: Vec<String>,
}

fn simulate(seed: u64, disturbed: bool, broken: Broken, log: &Log) -> Simulated {
    let mut machine = Machine::new(seed, disturbed, broken, log);
    let outcome = machine.run();
    let story = std::mem::take(&mut machine.world.borrow_mut().story);
    Simulated { outcome, story }
}

impl Machine {
    fn new(seed: u64, disturbed: bool, broken: Broken, log: &Log) -> Machine {
        let mut random = StdRng::seed_from_u64(seed ^ 0x9a7e);
        let transactions = if disturbed { [0.0, 0.1, 0.3][random.random_range(0..3)] } else { 0.0 };
        let mut broker = log.broker();
        broker.second_life.clear();
        broker.broken = broken;
        let inputs = broker.partitions();
        let partials = vec![Partition { topic: PARTIALS.into(), partition: 0 }];
        let folder = tempfile::tempdir().unwrap();
        let mut settings = simulation::settings(&folder.path().join("data"), false).unwrap();
        settings.partials_topic = Some(PARTIALS.to_owned());
        settings.store.shared = true;
        Machine {
            world: World::new(seed, broker, Trouble { transactions, ..Trouble::default() }),
            runtime: Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
            _folder: folder,
            settings: Arc::new(settings),
            groups: [Group::over(inputs), Group::over(partials)],
            instances: Vec::new(),
            dead: Vec::new(),
            trimmed: Arc::default(),
            next_who: 0,
            mishaps_left: if disturbed { random.random_range(3..MISHAPS_MAX) } else { 0 },
            away_for: 0,
            random,
        }
    }

    fn run(&mut self) -> Result<Outcome, String> {
        let (mut quiet, mut before, mut closed) = (0, self.progress(), false);
        for _ in 0..STEPS_MAX {
            self.turn().map_err(|error| format!("{error:?}"))?;
            let now = self.progress();
            quiet = if now == before && self.is_calm() { quiet + 1 } else { 0 };
            before = now;
            if quiet < QUIET_STEPS || self.mishaps_left > 0 {
                continue;
            }
            if closed {
                self.end().map_err(|error| format!("{error:?}"))?;
                let effects = self.world.borrow().broker.effects.clone();
                let unsure = Unsure { torn: Vec::new(), ahead: Vec::new() };
                return self.runtime.block_on(Outcome::read(self.settings.store.url.as_ref(), effects, unsure));
            }
            (closed, quiet) = (true, 0);
            self.world.borrow_mut().trouble = Trouble::default();
            log::close(&mut self.world.borrow_mut().broker);
        }
        Err(format!("still not done after {STEPS_MAX} steps"))
    }

    /// Tells whether everybody there is goes on.
    fn is_calm(&self) -> bool {
        self.away_for == 0 && self.dead.is_empty() && self.instances.iter().all(|one| one.frozen == 0)
    }

    /// Tells how far everything has come.
    fn progress(&self) -> (usize, usize, i64) {
        let broker = &self.world.borrow().broker;
        let partials = Partition { topic: PARTIALS.into(), partition: 0 };
        let read =
            broker.partitions().iter().chain([&partials]).filter_map(|partition| broker.committed(partition)).sum();
        (broker.effects.len(), broker.unwritten.len() + broker.log(&partials).len(), read)
    }

    /// Lets something happen: mostly, an instance goes a step on.
    fn turn(&mut self) -> Result<()> {
        {
            let world = &mut *self.world.borrow_mut();
            let steps = [0, 0, 20, 20, 100, 300, 1000];
            let step = steps[world.below(steps.len())];
            world.pass(Duration::from_millis(step));
            let entries = world.below(4);
            world.produce(entries);
        }
        self.notice_the_dead();
        self.away_for = self.away_for.saturating_sub(1);
        self.world.borrow_mut().broker.is_away = self.away_for > 0;
        if self.instances.is_empty() {
            return self.start();
        }
        if self.mishaps_left > 0 && self.random.random_bool(0.01) {
            self.mishaps_left -= 1;
            return self.mishap();
        }
        let at = self.random.random_range(0..self.instances.len());
        if self.instances[at].frozen > 0 {
            self.instances[at].frozen -= 1;
            return Ok(());
        }
        let step = match self.random.random_range(0..20) {
            0..12 => Step::Gather,
            12..19 => Step::Finish,
            _ => Step::Commit,
        };
        self.go_on(at, step)
    }

    fn go_on(&mut self, at: usize, step: Step) -> Result<()> {
        let instance = &mut self.instances[at];
        self.world.borrow_mut().doom = instance.doom.clone();
        let runtime = &self.runtime;
        let done = catch_unwind(AssertUnwindSafe(|| match step {
            Step::Gather => instance.gatherer.turn(),
            Step::Finish => instance.finisher.turn(),
            Step::Commit => match runtime.block_on(instance.store.commit()) {
                Err(error) if !error.retriable() => Err(error.into()),
                _ => Ok(()),
            },
        }));
        match done {
            Ok(_) if self.instances[at].doom.is_dead() => self.bury(at),
            Ok(Err(error)) if passes(&error) => {
                let number = self.instances[at].number;
                self.world.borrow_mut().tell(format!("instance {number} starts anew: {error:#}"));
                self.start_anew(at, step);
            }
            Ok(done) => done?,
            Err(panic) if panic.is::<Crash>() => self.bury(at),
            Err(panic) => resume_unwind(panic),
        }
        Ok(())
    }

    fn mishap(&mut self) -> Result<()> {
        let at = self.random.random_range(0..self.instances.len());
        let [number, gathers, finishes] = {
            let one = &self.instances[at];
            [one.number, one.whos[0], one.whos[1]]
        };
        let world = self.world.clone();
        match self.random.random_range(0..12) {
            0..4 if self.instances.len() < INSTANCES_MAX => self.start()?,
            0..2 => {
                world.borrow_mut().tell(format!("instance {number} is killed"));
                self.bury(at);
            }
            2..4 => {
                world.borrow_mut().tell(format!("instance {number} is told to stop"));
                self.stop(at)?;
            }
            4..6 => {
                let which = self.random.random_range(0..2);
                world.borrow_mut().tell(format!("the group goes on without {}", [gathers, finishes][which]));
                self.groups[which].borrow_mut().leave_behind([gathers, finishes][which], &mut world.borrow_mut());
            }
            6..8 => {
                let steps = self.random.random_range(10..300);
                let is_missed = self.random.random_bool(0.7);
                world.borrow_mut().tell(format!("instance {number} freezes for {steps} steps, missed: {is_missed}"));
                self.instances[at].frozen = steps;
                if is_missed {
                    for (group, who) in self.groups.iter().zip([gathers, finishes]) {
                        group.borrow_mut().leave_behind(who, &mut world.borrow_mut());
                    }
                }
            }
            8..10 => {
                self.away_for = self.random.random_range(5..200);
                world.borrow_mut().tell(format!("no broker answers for {} steps", self.away_for));
            }
            _ => {
                world.borrow_mut().tell("partitions are given out anew");
                self.groups.iter().for_each(|group| group.borrow_mut().rebalance(&mut world.borrow_mut()));
            }
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let number = (0..).find(|number| self.instances.iter().all(|one| one.number != *number)).unwrap_or(0);
        let doom = self.fate();
        let (faults, doom_of_puts) = (Faults::none(), doom.clone());
        faults.decide(move |operation, _| match operation != Operation::Read && doom_of_puts.step(At::Put) {
            true => Fault::Before,
            false => Fault::None,
        });
        let (settings, telemetry) = (self.settings.clone(), Telemetry::default());
        let made = self.runtime.block_on(async {
            let engine = service::engine(&settings).await?;
            let specs = service::table_specs(&engine);
            let store = Arc::new(open_simulated(&settings.store, specs, None, &faults).await?);
            let core = service::new_core(&settings, engine.gathering(), &store, &telemetry).await?;
            anyhow::Ok((store, core))
        });
        let (store, core) = match made {
            Err(_) if doom.is_dead() => return Ok(()),
            made => made?,
        };
        let whos = [self.next_who, self.next_who + 1];
        self.next_who += 2;
        self.world.borrow_mut().tell(format!("instance {number} starts, as {whos:?}"));
        let (trimmed, stop) = (self.trimmed.clone(), Arc::new(AtomicBool::new(false)));
        let shared = Shared {
            on_duty: Arc::default(),
            settings,
            store: store.clone(),
            telemetry,
            obstacles: Obstacles::default(),
            clock: GroupClock(self.world.clone()),
            runtime: self.runtime.handle().clone(),
            stop: stop.clone(),
            partials: PARTIALS.to_owned(),
            trim: Arc::new(move |before| {
                trimmed.fetch_max(before, Ordering::SeqCst);
            }),
            instance: number.to_string(),
        };
        self.world.borrow_mut().doom = Doom::default();
        let carriers = whos.map(|who| Rc::new(RefCell::new(Carrier::new(self.world.clone(), who))));
        let feed = |part: usize| {
            let (world, group) = (self.world.clone(), self.groups[part].clone());
            GroupFeed::join(world, group, whos[part], carriers[part].clone(), self.trimmed.clone())
        };
        let exits = carriers.clone().map(SimulatedExit);
        let [gathers, finishes] = exits;
        let gatherer = Gatherer::new(shared.clone(), core, feed(0), gathers, frontiers(&self.world));
        let finisher = Finisher::new(shared, feed(1), finishes, Board::default(), Box::new(|_| ()));
        self.instances.push(Instance { number, whos, carriers, gatherer, finisher, store, stop, doom, frozen: 0 });
        Ok(())
    }

    /// Says when an instance dies by itself, if it does.
    fn fate(&mut self) -> Doom {
        if self.mishaps_left == 0 || self.random.random_bool(0.4) {
            return Doom::default();
        }
        let all = [(At::Turn, 900), (At::Clock, 6000), (At::Transaction, 40), (At::Landed, 40), (At::Put, 120)];
        let (at, most) = all[self.random.random_range(0..all.len())];
        Doom::new(Some((at, self.random.random_range(0..most))))
    }

    /// Buries an instance that died: its groups miss it later.
    fn bury(&mut self, at: usize) {
        let Instance { number, whos, doom, gatherer, finisher, .. } = self.instances.swap_remove(at);
        doom.die();
        drop((gatherer, finisher));
        self.world.borrow_mut().tell(format!("instance {number} is dead"));
        for who in whos {
            let after = self.random.random_range(0..150);
            self.dead.push((who, after));
        }
    }

    fn notice_the_dead(&mut self) {
        for (who, left) in &mut self.dead {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let group = &self.groups[*who % 2];
                group.borrow_mut().go_on_without(*who, &mut self.world.borrow_mut());
            }
        }
        self.dead.retain(|(_, left)| *left > 0);
    }

    /// Ends both parts of an instance of which one has failed, as its process does, and starts it again.
    fn start_anew(&mut self, at: usize, failed: Step) {
        let Instance { whos, carriers, gatherer, finisher, stop, doom, .. } = self.instances.swap_remove(at);
        stop.store(true, Ordering::SeqCst);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            // What the failed part had on its way may land at this very moment.
            carriers.iter().for_each(|carrier| carrier.borrow_mut().go_on());
            match failed {
                Step::Gather => drop((gatherer, finisher.end())),
                Step::Finish => drop((finisher, gatherer.end())),
                Step::Commit => drop((gatherer.end(), finisher.end())),
            }
        }));
        match ended {
            Err(panic) if !panic.is::<Crash>() => resume_unwind(panic),
            _ => doom.die(),
        }
        for (group, who) in self.groups.iter().zip(whos) {
            group.borrow_mut().go_on_without(who, &mut self.world.borrow_mut());
        }
    }

    /// Stops an instance as a signal does.
    fn stop(&mut self, at: usize) -> Result<()> {
        let Instance { whos, gatherer, finisher, store, stop, doom, .. } = self.instances.swap_remove(at);
        self.world.borrow_mut().doom = doom.clone();
        stop.store(true, Ordering::SeqCst);
        let runtime = &self.runtime;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let gathered = gatherer.end();
            finisher.end().and(gathered)?;
            runtime.block_on(store.commit())?;
            anyhow::Ok(())
        }));
        for (group, who) in self.groups.iter().zip(whos) {
            group.borrow_mut().go_on_without(who, &mut self.world.borrow_mut());
        }
        match ended {
            Err(panic) if !panic.is::<Crash>() => resume_unwind(panic),
            Ok(Err(error)) if !doom.is_dead() && !passes(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        while !self.instances.is_empty() {
            self.stop(0)?;
        }
        Ok(())
    }
}

/// Tells whether an instance may end so: it starts anew, in place or at the hand of whoever runs it.
fn passes(error: &anyhow::Error) -> bool {
    may_start_anew(error) || simulation::is_expected(error)
}

/// Tells how far metrics and events have come, as the finisher committed it.
fn frontiers(world: &world::Shared) -> super::super::Frontiers {
    let world = world.clone();
    Box::new(move || {
        let world = world.borrow();
        let metadata = world.broker.metadata(&Partition { topic: PARTIALS.into(), partition: 0 });
        let said = metadata.and_then(|metadata| Emitted::parse(metadata)?.frontiers_micros);
        Ok(said.unwrap_or_default().map(|micros| micros.map(EventTime::from_micros)))
    })
}

fn verdict(seed: u64, disturbed: bool, broken: Broken) -> Result<(), String> {
    let log = Log::make(seed / 4 * 3 + 1, false);
    let run = catch_unwind(AssertUnwindSafe(|| simulate(seed, disturbed, broken, &log)));
    let Ok(Simulated { outcome, story }) = run else { return Err("a panic, see above".to_owned()) };
    if std::env::var("BELLWETHER_SIM_SEED").is_ok() {
        println!("{}", story.join("\n"));
    }
    outcome.and_then(|outcome| outcome.check(&log.meaning))
}

#[test]
fn several_instances_are_exact_whoever_comes_goes_or_dies() {
    let failures = for_each_seed(seeds(60), |seed| {
        verdict(seed, true, Broken::Nothing).inspect_err(|wrong| {
            println!("{wrong}\nBELLWETHER_SIM_SEED={seed} cargo test --locked --lib several_instances -- --nocapture");
        })
    });
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn several_instances_repeat_themselves_by_their_seed() {
    for seed in [1, 5] {
        let log = Log::make(seed * 3 + 1, false);
        let [first, second] = [(), ()].map(|()| simulate(seed, true, Broken::Nothing, &log).story);
        assert_eq!(first, second, "seed {seed}");
    }
}

/// Promises that are broken must be noticed, else the comparison compares nothing.
#[test]
fn control_several_instances_with_a_promise_broken() {
    let all =
        [Broken::OffsetsApart, Broken::LandedDenied, Broken::AbortedRead, Broken::MembersKept, Broken::PartitionsTaken];
    for broken in all {
        let noticed: Mutex<BTreeMap<u64, String>> = Mutex::default();
        for_each_seed(0..40, |seed| {
            if noticed.lock().unwrap().is_empty()
                && let Err(wrong) = verdict(seed, true, broken)
            {
                noticed.lock().unwrap().insert(seed, wrong);
            }
            Ok(())
        });
        let noticed = noticed.into_inner().unwrap();
        assert!(!noticed.is_empty(), "no seed notices {broken:?}");
        println!("{broken:?} is noticed: {noticed:?}");
    }
}
