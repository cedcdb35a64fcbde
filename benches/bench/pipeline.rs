//! The path without Kafka: decode, window by all shipped views, store on a local folder, commits included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bellwether::ingest::{Bounds, Format};
use bellwether::model::time::EventTime;
use bellwether::run::partition::DoneBefore;
use bellwether::run::settings::Settings;
use bellwether::run::{core::Core, service};
use bellwether::store::Store;
use bellwether::telemetry::Telemetry;
use bellwether::{config, store};

use super::measure::{Results, Took, once, resident_mib};
use super::records::{InMemory, Set};

const REPETITIONS: usize = 5;
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
    for series in [10_000, 100_000] {
        let name = format!("pipeline/json_metrics_{}k_series", series / 1000);
        if name.contains(filter) {
            let set = Set::make(Format::JsonMetrics, 1_000_000, series);
            let before = resident_mib()?;
            let (took, peak) = one_run(&set, Format::JsonMetrics)?;
            results.add_rates(&name, "records/s", set.points, &[took]);
            results.add(&format!("{name}/resident_peak"), "MiB", vec![peak]);
            results.add(&format!("{name}/resident_added"), "MiB", vec![peak - before]);
        }
    }
    Ok(())
}

/// Sends a whole set through a new core and store; returns what it took and the most memory seen.
fn one_run(set: &Set, format: Format) -> Result<(Took, f64)> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let settings = settings(&folder.path().display().to_string(), &set.topic, format, "localhost:9092")?;
    let (mut core, store) = runtime.block_on(build(&settings))?;
    core.assign((set.topic.clone(), 0), "bench/0".to_owned(), 0, DoneBefore::default())?;
    let bounds = Bounds { oldest: EventTime::MIN, newest: EventTime::MAX };
    let mut peak = 0.0f64;
    let ((), took) = once(|| {
        let mut committed = Instant::now();
        for (number, chunk) in set.payloads.chunks(BATCH).enumerate() {
            let offset = number * BATCH;
            let batch = chunk.iter().enumerate().map(|(at, payload)| InMemory {
                topic: &set.topic,
                offset: (offset + at) as i64,
                payload,
            });
            core.ingest(batch, bounds)?;
            runtime.block_on(core.advance())?;
            if committed.elapsed() >= COMMIT_INTERVAL {
                runtime.block_on(store.commit())?;
                committed = Instant::now();
                peak = peak.max(resident_mib()?);
            }
        }
        peak = peak.max(resident_mib()?);
        runtime.block_on(store.commit())?;
        Ok(())
    })?;
    peak = peak.max(resident_mib()?);
    let table = core.table_of(&set.topic)?;
    let stored = runtime.block_on(count(&store, table))?;
    anyhow::ensure!(stored == set.points, "{} of {} records were stored", stored, set.points);
    Ok((took, peak))
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
