//! The path without Kafka: decode, window by all shipped views, store on a local folder, commits included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bellwether::ingest::{Bounds, Format};
use bellwether::model::time::EventTime;
use bellwether::run::core::Core;
use bellwether::run::partition::{DoneBefore, StoredAs};
use bellwether::run::settings::Settings;
use bellwether::run::{service, shipped};
use bellwether::store::Store;
use bellwether::telemetry::Telemetry;
use bellwether::{config, store};

use super::measure::{Results, Took, once, resident_mib};
use super::records::{InMemory, Set};

const REPETITIONS: usize = 5;
const SERIES_REPETITIONS: usize = 3;
/// Records in a second of event time, where windows are compared: far below what is taken in per second, so that closing
/// windows weighs more than it will in a service at its limit.
const EVENT_RATE: usize = 20_000;
const BATCH: usize = 4096;
const COMMIT_INTERVAL: Duration = Duration::from_secs(2);

pub fn run(filter: &str, results: &mut Results) -> Result<()> {
    for format in Format::ALL {
        let name = format!("pipeline/{}", format.as_str());
        if name.contains(filter) {
            let set = Set::make(format, 1_000_000, 1_000);
            let took = (0..REPETITIONS).map(|_| one_run(&set, format).map(|(took, _)| took));
            let took = took.collect::<Result<Vec<Took>>>()?;
            let unit = if set.payloads.len() == set.points { "records/s" } else { "points/s" };
            results.add_rates(&name, unit, set.points, &took);
            let megabytes = took.iter().map(|t| set.bytes() as f64 / 1e6 / t.cpu_seconds).collect();
            results.add(&format!("{name}/megabytes_per_core_second"), "MB/s", megabytes);
        }
    }
    series(filter, results)?;
    views(filter, results)
}

/// How cost and memory grow with the number of series: the first pass sees every series for the first time, the others
/// know them. The sizes take turns, so that a slow moment of the machine hits all of them.
fn series(filter: &str, results: &mut Results) -> Result<()> {
    const PASSES: usize = 7;
    let named = |series: usize| (format!("series/{}k", series / 1000), series);
    let sizes = [10_000, 100_000, 1_000_000].map(named).into_iter().filter(|(name, _)| name.contains(filter));
    let sets: Vec<_> = sizes.map(|(name, series)| (name, Set::of_series(1_000_000, series))).collect();
    let mut took: Vec<[Vec<Took>; 3]> = sets.iter().map(|_| Default::default()).collect();
    let (before, mut resident) = (resident_mib()?, Vec::new());
    for repetition in 0..SERIES_REPETITIONS {
        for ((_, set), [first_sight, known, all]) in sets.iter().zip(&mut took) {
            let mut run = Run::start(set, Format::JsonMetrics, "")?;
            let passes = (0..PASSES).map(|_| run.pass(set)).collect::<Result<Vec<Took>>>()?;
            let added = run.finish(set)? - before;
            // Later what was freed before is used again.
            if repetition == 0 {
                resident.push(added);
            }
            first_sight.push(passes[0]);
            known.extend(&passes[1..]);
            all.push(passes.iter().fold(Took { wall_seconds: 0.0, cpu_seconds: 0.0 }, |sum, took| Took {
                wall_seconds: sum.wall_seconds + took.wall_seconds,
                cpu_seconds: sum.cpu_seconds + took.cpu_seconds,
            }));
        }
    }
    for (((name, set), [first_sight, known, all]), added) in sets.iter().zip(&took).zip(resident) {
        results.add_rates(&format!("{name}/first_sight"), "records/s", set.points, first_sight);
        results.add_rates(&format!("{name}/known"), "records/s", set.points, known);
        results.add_rates(&format!("{name}/all"), "records/s", set.points * PASSES, all);
        results.add(&format!("{name}/resident_added"), "MiB", vec![added]);
    }
    Ok(())
}

/// Of a view: its window, its aggregate, and the number of its condition.
type Asked<'a> = (&'a str, &'a str, usize);

/// What views cost: none, one, a hundred over one key, and a window with sixty slides against one without. Side by side,
/// round by round, so that a slow moment of the machine hits all of them.
fn views(filter: &str, results: &mut Results) -> Result<()> {
    let aggregates = ["count(*)", "avg(value)", "max(value)", "sum(value)", "stddev(value)"];
    let windows = [
        "tumble(ts, INTERVAL '10 seconds')",
        "tumble(ts, INTERVAL '1 minute')",
        "tumble(ts, INTERVAL '5 minutes')",
        "hop(ts, INTERVAL '10 seconds', INTERVAL '1 minute')",
    ];
    let hundred = (0..100).map(|n| (windows[n % 4], aggregates[n / 4 % 5], n / 20)).collect::<Vec<_>>();
    let sets: [(&str, Vec<Asked<'_>>); 5] = [
        ("views/none", Vec::new()),
        ("views/one", vec![(windows[0], aggregates[0], 0)]),
        ("views/hundred_on_one_key", hundred),
        ("views/tumble_1m", vec![(windows[1], "hdr_quantile(value, 0.99)", 0)]),
        (
            "views/hop_1m_by_1s",
            vec![("hop(ts, INTERVAL '1 second', INTERVAL '1 minute')", "hdr_quantile(value, 0.99)", 0)],
        ),
    ];
    let sets: Vec<_> = sets.into_iter().filter(|(name, _)| name.contains(filter)).collect();
    if sets.is_empty() {
        return Ok(());
    }
    let set = Set::make_dense(1_000_000, 1_000, EVENT_RATE);
    let mut took: Vec<Vec<Took>> = vec![Vec::new(); sets.len()];
    for _ in 0..REPETITIONS {
        for ((_, views), took) in sets.iter().zip(&mut took) {
            let folder = tempfile::tempdir()?;
            for (number, (window, aggregate, above)) in views.iter().enumerate() {
                let view = format!(
                    "CREATE MATERIALIZED VIEW v{number} AS SELECT window_start, window_end, labels['service'] AS service, \
                     {aggregate} AS x FROM metrics WHERE name = 'request_duration_seconds' \
                     GROUP BY {window}, labels['service'] HAVING {aggregate} > {above}"
                );
                std::fs::write(folder.path().join(format!("v{number}.sql")), view)?;
            }
            let mut run = Run::start(&set, Format::JsonMetrics, &folder.path().display().to_string())?;
            took.push(run.pass(&set)?);
            run.finish(&set)?;
        }
    }
    for ((name, _), took) in sets.iter().zip(&took) {
        results.add_rates(name, "records/s", set.points, took);
    }
    Ok(())
}

/// Sends a whole set through a new core and store; returns what it took and the most memory seen.
fn one_run(set: &Set, format: Format) -> Result<(Took, f64)> {
    let mut run = Run::start(set, format, "")?;
    let took = run.pass(set)?;
    Ok((took, run.finish(set)?))
}

/// A core and its store, and what went through them.
struct Run {
    core: Core,
    store: Arc<Store>,
    runtime: tokio::runtime::Runtime,
    offset: usize,
    passes: usize,
    peak_mib: f64,
    _folder: tempfile::TempDir,
}

impl Run {
    /// `views` is the folder of the views; empty for those that are shipped.
    fn start(set: &Set, format: Format, views: &str) -> Result<Run> {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut settings = settings(&folder.path().display().to_string(), &set.topic, format, "localhost:9092")?;
        settings.series_max = 2_000_000;
        if !views.is_empty() {
            (settings.rules, settings.insight, settings.targets) = Default::default();
            settings.views = shipped::views(views, settings.view_defaults)?.views;
        }
        let (mut core, store) = runtime.block_on(build(&settings))?;
        let name = StoredAs { app: "bench/0".to_owned(), topic_id: String::new() };
        core.assign((set.topic.clone(), 0), name, 0, DoneBefore::default())?;
        Ok(Run { core, store, runtime, offset: 0, passes: 0, peak_mib: 0.0, _folder: folder })
    }

    /// Sends the set through, and commits all of it.
    fn pass(&mut self, set: &Set) -> Result<Took> {
        let bounds = Bounds { oldest: EventTime::MIN, newest: EventTime::MAX };
        let ((), took) = once(|| {
            let mut committed = Instant::now();
            for chunk in set.payloads.chunks(BATCH) {
                let (offset, pass) = (self.offset, self.passes);
                let batch = chunk.iter().enumerate().map(|(at, payload)| InMemory {
                    topic: &set.topic,
                    offset: (offset + at) as i64,
                    timestamp_ms: set.timestamp_ms(pass, offset + at),
                    payload,
                });
                self.core.ingest(batch, bounds)?;
                self.offset += chunk.len();
                self.runtime.block_on(self.core.advance())?;
                if committed.elapsed() >= COMMIT_INTERVAL {
                    self.runtime.block_on(self.store.commit())?;
                    committed = Instant::now();
                    self.peak_mib = self.peak_mib.max(resident_mib()?);
                }
            }
            self.peak_mib = self.peak_mib.max(resident_mib()?);
            self.runtime.block_on(self.store.commit())?;
            Ok(())
        })?;
        self.passes += 1;
        Ok(took)
    }

    /// Checks that everything is in the store; returns the most memory seen.
    fn finish(self, set: &Set) -> Result<f64> {
        let table = self.core.table_of(&set.topic)?;
        let stored = self.runtime.block_on(count(&self.store, table))?;
        let sent = set.points * self.passes;
        anyhow::ensure!(stored == sent, "{stored} of {sent} records were stored");
        Ok(self.peak_mib)
    }
}

async fn build(settings: &Settings) -> Result<(Core, Arc<Store>)> {
    let engine = service::engine(settings).await?;
    let store = Arc::new(Store::open(&settings.store, service::table_specs(&engine)).await?);
    let core = service::build_core(settings, engine, &store, &Telemetry::default()).await?;
    Ok((core, store))
}

/// Returns the settings of a service with one input and everything else as shipped.
pub fn settings(folder: &str, topic: &str, format: Format, brokers: &str) -> Result<Settings> {
    let set = |name: &str, value: String| (format!("BELLWETHER_{name}"), value);
    let input = format!("[{{topic = {topic:?}, format = {:?}}}]", format.as_str());
    let typed = [
        set("INPUTS", input),
        set("STORE__URL", folder.to_owned()),
        set("KAFKA__BROKERS", brokers.to_owned()),
        set("KAFKA__GROUP_ID", format!("bench-{topic}")),
        set("LIMITS__AGE_MAX", "36500d".to_owned()),
        set("SERVE__LISTEN", "127.0.0.1:0".to_owned()),
    ];
    Settings::of(&config::load(None, typed.into_iter())?)
}

async fn count(store: &store::Store, table: &str) -> Result<usize> {
    let context = datafusion::prelude::SessionContext::new();
    for (name, provider) in store.pin() {
        context.register_table(name.as_str(), provider)?;
    }
    context.table(table).await?.count().await.context("failed to count what was stored")
}
