//! The whole core in a simulated world: the real conductor, engine, loop and store between a Kafka in memory and a disk
//! that keeps what it was told to keep, killed at any step and started again, held against a naive model.
//!
//! `BELLWETHER_SIM_SEEDS=5000` runs more of it, from `BELLWETHER_SIM_FIRST` on; `BELLWETHER_SIM_SEED=7` runs one seed, and
//! tells its story.

pub(super) mod feed;
pub(super) mod kafka;
pub(super) mod log;
pub(super) mod model;
pub(super) mod outcome;
pub(super) mod process;
pub(super) mod simulation;
pub(super) mod world;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kafka::Broken;
use log::Log;
use simulation::{Plan, Simulated, simulate};

/// Threads that seeds run on.
const THREADS: usize = 2;

/// Which seeds to try.
pub(super) fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("BELLWETHER_SIM_FIRST").unwrap_or(0);
    match number("BELLWETHER_SIM_SEED") {
        Some(one) => one..one + 1,
        None => first..first + number("BELLWETHER_SIM_SEEDS").unwrap_or(default),
    }
}

/// Runs a plan and tells what is wrong with what came of it, with what happened.
fn verdict(plan: Plan, log: &Log, effects: Option<&[String]>) -> Result<(), String> {
    let run = catch_unwind(AssertUnwindSafe(|| simulate(plan, log)));
    let Ok(Simulated { outcome, story }) = run else { return Err("a panic, see above".to_owned()) };
    let wrong = outcome.and_then(|outcome| {
        if plan.is_late {
            return outcome.check_late(&log.meaning);
        }
        outcome.check(&log.meaning)?;
        effects.map_or(Ok(()), |expected| outcome::same("the effects", &outcome.effects(), &expected.to_vec()))
    });
    if std::env::var("BELLWETHER_SIM_SEED").is_ok() {
        println!("{}", story.join("\n"));
    }
    wrong
}

/// Returns the effects of an undisturbed run over a log.
fn undisturbed(plan: Plan, log: &Log) -> Result<Vec<String>, String> {
    let outcome = simulate(Plan { disturbed: false, ..plan }, log).outcome?;
    outcome.check(&log.meaning)?;
    Ok(outcome.effects())
}

/// Runs `of` for every seed, on several threads; returns the failures by seed.
pub(super) fn for_each_seed(seeds: Range<u64>, of: impl Fn(u64) -> Result<(), String> + Sync) -> BTreeMap<u64, String> {
    let (next, failures) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end {
                        return;
                    }
                    if let Err(wrong) = of(seed) {
                        failures.lock().unwrap().insert(seed, wrong);
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap()
}

/// Tells at once what is wrong with a seed, and how to see it again.
fn told(seed: u64, verdict: Result<(), String>) -> Result<(), String> {
    verdict.inspect_err(|wrong| {
        println!("{wrong}\nBELLWETHER_SIM_SEED={seed} cargo test --locked --lib run::tests::the_whole -- --nocapture");
    })
}

#[test]
fn the_whole_core_is_exact_through_crashes_at_any_step() {
    let references: Mutex<BTreeMap<u64, Vec<String>>> = Mutex::default();
    let failures = for_each_seed(seeds(150), |seed| {
        let plan = Plan::disturbed(seed);
        let log = Log::make(plan.log(), plan.is_late);
        if plan.is_late {
            return told(seed, verdict(plan, &log, None));
        }
        let known = references.lock().unwrap().get(&plan.log()).cloned();
        let effects = match known {
            Some(effects) => effects,
            None => {
                let effects = undisturbed(plan, &log).map_err(|wrong| format!("undisturbed: {wrong}"))?;
                references.lock().unwrap().entry(plan.log()).or_insert(effects).clone()
            }
        };
        told(seed, verdict(plan, &log, Some(&effects)))
    });
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn fault_25_partitions_interleaved_otherwise_give_the_same_alerts() {
    let failures = for_each_seed(0..8, |number| {
        let log = Log::make(1000 + number, false);
        let plan = |seed| Plan { seed, disturbed: false, is_late: false, broken: Broken::Nothing };
        let first = undisturbed(plan(number * 100), &log)?;
        if !first.iter().any(|effect| effect.starts_with("out.alerts")) {
            return Err("no alert to compare".to_owned());
        }
        (1..4)
            .try_for_each(|other| outcome::same("the effects", &undisturbed(plan(number * 100 + other), &log)?, &first))
    });
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn a_seed_repeats_itself() {
    for seed in [1, 2, 7] {
        let plan = Plan::disturbed(seed);
        let log = Log::make(plan.log(), plan.is_late);
        let [first, second] = [simulate(plan, &log), simulate(plan, &log)].map(|run| run.story);
        assert_eq!(first, second, "seed {seed}");
    }
}

/// Breaks one promise of the world, and returns the first seed of so many at which the comparison notices.
fn noticed(broken: Broken, seeds: u64) -> Option<(u64, String)> {
    let first = Mutex::new(None);
    for_each_seed(0..seeds, |seed| {
        if first.lock().unwrap().is_some() {
            return Ok(());
        }
        let plan = Plan { seed, disturbed: true, is_late: broken == Broken::Uncorrected, broken };
        let log = Log::make(plan.log(), plan.is_late);
        if let Err(wrong) = verdict(plan, &log, None) {
            let mut first = first.lock().unwrap();
            if first.as_ref().is_none_or(|(before, _)| seed < *before) {
                *first = Some((seed, wrong));
            }
        }
        Ok(())
    });
    first.into_inner().unwrap()
}

/// A promise that is broken must be noticed, else the comparison compares nothing.
macro_rules! controls {
    ($($name:ident: $broken:ident within $seeds:literal)*) => {$(
        #[test]
        fn $name() {
            let (seed, wrong) = noticed(Broken::$broken, $seeds).expect("no seed notices");
            println!("noticed at seed {seed}: {wrong}");
        }
    )*};
}

controls! {
    control_offsets_committed_apart_from_effects: OffsetsApart within 30
    control_a_landed_transaction_that_is_denied: LandedDenied within 30
    control_a_reader_of_aborted_effects: AbortedRead within 30
    control_reading_from_the_offset_of_the_effects: StartAtEffects within 30
    control_positions_of_the_store_forgotten: PositionsForgotten within 30
    control_bytes_lost_that_were_synced: BytesForgotten within 30
    control_names_lost_that_were_synced: NamesForgotten within 30
    control_windows_that_are_not_corrected: Uncorrected within 10
}
