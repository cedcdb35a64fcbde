//! How long people wait for SQL: quantiles of the last hour, the last value of each series, one series over a month, and
//! questions about labels where there are a million series. The store is compacted, the answers are checked, and every
//! query is planned and run anew each time.
//!
//! `BELLWETHER_BENCH_KEEP` names a folder to leave the stores in, for other engines to read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use bellwether::model::series::{Descriptor, Interner, SeriesId};
use bellwether::model::time::EventTime;
use bellwether::query::{Engine, Settings as QuerySettings};
use bellwether::run::tables;
use bellwether::store::{Eagerness, Settings, Store, columns};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

use super::measure::{Results, once, resident_mib};

/// 2026-11-02 00:00 UTC.
const START: i64 = 1_793_577_600_000_000;
const SECOND: i64 = 1_000_000;
const REPETITIONS: usize = 15;

/// A store of one metric: so many services of so many instances each, a sample every `step` for `span`.
struct Fleet {
    services: usize,
    instances: usize,
    step: i64,
    span: i64,
}

impl Fleet {
    fn series(&self) -> usize {
        self.services * self.instances
    }

    async fn stored(&self, folder: &Path) -> Result<Arc<Store>> {
        let settings = Settings {
            url: folder.display().to_string(),
            durable: false,
            head_bytes_max: usize::MAX,
            ..Settings::default()
        };
        let store = Arc::new(Store::open(&settings, columns::record_tables()).await?);
        let mut interner = Interner::new(usize::MAX);
        for service in 0..self.services {
            for instance in 0..self.instances {
                let zone = ["eu", "us", "ap"][instance % 3];
                let (service, instance) = (format!("service-{service:03}"), format!("host-{instance:05}.example:9100"));
                let labels =
                    vec![("service", service.as_str()), ("instance", &instance), ("zone", zone), ("job", "web")];
                interner.intern(&mut Descriptor {
                    name: "request_duration_seconds",
                    labels,
                    ..Descriptor::default()
                })?;
            }
        }
        let all = 0..interner.len();
        let rows = columns::series(interner.range(all), EventTime::from_micros(START), &store.schema("series")?)?;
        store.append("series", Some(rows), &[])?;
        let ids: Vec<SeriesId> = interner.ids().to_vec();
        drop(interner);
        let mut random = StdRng::seed_from_u64(7);
        let steps_at_once = (2_000_000 / ids.len() as i64).max(1);
        let steps = self.span / self.step;
        for first in (0..steps).step_by(steps_at_once as usize) {
            let rows = samples(&ids, first..(first + steps_at_once).min(steps), self.step, &mut random, &store)?;
            store.append("samples", Some(rows), &[])?;
            store.commit().await?;
        }
        loop {
            let due = store.due(Eagerness::Thorough);
            if due.is_empty() {
                return Ok(store);
            }
            for due in due {
                store.merge(&due).await?.context("nobody else merges")?;
            }
        }
    }
}

fn samples(
    ids: &[SeriesId],
    steps: std::ops::Range<i64>,
    step: i64,
    random: &mut StdRng,
    store: &Store,
) -> Result<RecordBatch> {
    let rows = ids.len() * (steps.end - steps.start) as usize;
    let (mut series, mut ts, mut values) =
        (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::with_capacity(rows));
    for at in steps {
        for id in ids {
            series.push(id.0);
            ts.push(START + at * step);
            // Long-tailed, as durations are, in whole microseconds.
            values.push((0.01 / random.random_range(0.001_f64..1.0) * 1e6).round() / 1e6);
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(series)),
        Arc::new(TimestampMicrosecondArray::from(ts).with_timezone("UTC")),
        Arc::new(Float64Array::from(values)),
    ];
    Ok(RecordBatch::try_new(store.schema("samples")?, columns)?)
}

/// One query, and how many rows it must answer with.
struct Question {
    name: &'static str,
    sql: String,
    rows: usize,
}

pub fn run(filter: &str, results: &mut Results) -> Result<()> {
    if !["query/hour", "query/month", "query/labels"].iter().any(|name| name.contains(filter)) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let kept = std::env::var_os("BELLWETHER_BENCH_KEEP").map(PathBuf::from);
    let home = kept.unwrap_or_else(|| folder.path().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if "query/hour".contains(filter) {
        hour(&home.join("hour"), &runtime, results)?;
    }
    if "query/month".contains(filter) {
        month(&home.join("month"), &runtime, results)?;
    }
    if "query/labels".contains(filter) {
        labels(&home.join("labels"), &runtime, results)?;
    }
    Ok(())
}

/// An hour of ten thousand series, every ten seconds.
fn hour(folder: &Path, runtime: &Runtime, results: &mut Results) -> Result<()> {
    let fleet = Fleet { services: 50, instances: 200, step: 10 * SECOND, span: 3600 * SECOND };
    let metrics = "FROM metrics WHERE name = 'request_duration_seconds'";
    let last_minutes = "AND ts >= TIMESTAMP '2026-11-02T00:55:00Z'";
    let question = |name, sql, rows| Question { name, sql, rows };
    let questions = [
        question(
            "query/hour/p99_by_service",
            format!("SELECT labels['service'] AS service, hdr_quantile(value, 0.99) {metrics} GROUP BY service"),
            fleet.services,
        ),
        question(
            "query/hour/p99_exact_by_service",
            format!("SELECT labels['service'] AS service, percentile_cont(value, 0.99) {metrics} GROUP BY service"),
            fleet.services,
        ),
        question("query/hour/p99_of_all", format!("SELECT hdr_quantile(value, 0.99) {metrics}"), 1),
        question(
            "query/hour/mean_by_minute",
            format!("SELECT time_bucket('1 minute', ts) AS minute, avg(value) {metrics} GROUP BY minute"),
            60,
        ),
        question(
            "query/hour/last_of_each_series",
            format!("SELECT series_id, last(value, ts) {metrics} {last_minutes} GROUP BY series_id"),
            fleet.series(),
        ),
        question(
            "query/hour/one_series",
            format!(
                "SELECT ts, value {metrics} AND labels['service'] = 'service-007' AND labels['instance'] = 'host-00042.example:9100'"
            ),
            360,
        ),
    ];
    ask(&fleet, folder, runtime, &questions, results)
}

/// Thirty days of a hundred series, every fifteen seconds, asked about one.
fn month(folder: &Path, runtime: &Runtime, results: &mut Results) -> Result<()> {
    let fleet = Fleet { services: 10, instances: 10, step: 15 * SECOND, span: 30 * 86_400 * SECOND };
    let of_one = "FROM metrics WHERE name = 'request_duration_seconds' AND labels['service'] = 'service-003' \
                  AND labels['instance'] = 'host-00004.example:9100'";
    let questions = [
        Question {
            name: "query/month/one_series_by_hour",
            sql: format!("SELECT time_bucket('1 hour', ts) AS hour, avg(value), max(value) {of_one} GROUP BY hour"),
            rows: 720,
        },
        Question {
            name: "query/month/one_series_last_day",
            sql: format!("SELECT ts, value {of_one} AND ts >= TIMESTAMP '2026-12-01T00:00:00Z'"),
            rows: 5760,
        },
    ];
    ask(&fleet, folder, runtime, &questions, results)
}

/// A million series, asked about themselves.
fn labels(folder: &Path, runtime: &Runtime, results: &mut Results) -> Result<()> {
    let fleet = Fleet { services: 100, instances: 10_000, step: 60 * SECOND, span: 60 * SECOND };
    let question = |name, sql: &str, rows| Question { name, sql: sql.to_owned(), rows };
    let questions = [
        question("query/labels/values", "SELECT value FROM system.labels WHERE label = 'service'", 100),
        question("query/labels/names", "SELECT DISTINCT label FROM system.labels WHERE label = 'zone'", 1),
        question("query/labels/metrics", "SELECT name, series FROM system.metrics", 1),
        question(
            "query/labels/exact",
            "SELECT series_id FROM series WHERE labels['service'] = 'service-042' AND labels['instance'] = 'host-04242.example:9100'",
            1,
        ),
        question(
            "query/labels/negative",
            "SELECT count(*) FROM series WHERE labels['service'] = 'service-042' AND labels['zone'] <> 'eu'",
            1,
        ),
        question("query/labels/regex", "SELECT count(*) FROM series WHERE labels['service'] ~ '^service-0[1-3]'", 1),
        question(
            "query/labels/regex_of_many",
            "SELECT count(*) FROM series WHERE labels['instance'] ~ '^host-0[1-3].*'",
            1,
        ),
    ];
    ask(&fleet, folder, runtime, &questions, results)
}

/// Asks each question several times; the first, which fills caches and the index, is told apart.
fn ask(fleet: &Fleet, folder: &Path, runtime: &Runtime, questions: &[Question], results: &mut Results) -> Result<()> {
    let store = runtime.block_on(fleet.stored(folder))?;
    let rows = fleet.series() as i64 * (fleet.span / fleet.step);
    println!("{} series, {rows} samples in {}", fleet.series(), folder.display());
    let engine = tables::engine(QuerySettings::default(), store, Vec::new())?;
    let indexed = once(|| answer(&engine, runtime, "SELECT count(*) FROM series WHERE name = 'none'"))?.1;
    results.add(&format!("{}/index", prefix(questions)), "ms", vec![indexed.wall_seconds * 1e3]);
    let counted = answer(&engine, runtime, "SELECT count(*) FROM samples")?;
    let counted =
        counted.first().and_then(|batch| batch.column(0).as_any().downcast_ref::<Int64Array>().map(|n| n.value(0)));
    ensure!(counted == Some(rows), "expected {rows} samples, got {counted:?}");
    for Question { name, sql, rows } in questions {
        let mut took = Vec::with_capacity(REPETITIONS);
        for repetition in 0..=REPETITIONS {
            let (answered, this) = once(|| answer(&engine, runtime, sql))?;
            let answered: usize = answered.iter().map(RecordBatch::num_rows).sum();
            ensure!(answered == *rows, "{name}: expected {rows} rows, got {answered}");
            if repetition > 0 {
                took.push(this.wall_seconds * 1e3);
            }
        }
        results.add(name, "ms", took);
    }
    results.add(&format!("{}/resident", prefix(questions)), "MiB", vec![resident_mib()?]);
    Ok(())
}

fn prefix(questions: &[Question]) -> &str {
    questions.first().and_then(|question| question.name.rsplit_once('/')).map_or("query", |(prefix, _)| prefix)
}

fn answer(engine: &Engine, runtime: &Runtime, sql: &str) -> Result<Vec<RecordBatch>> {
    let said = |error: bellwether::query::QueryError| anyhow::Error::msg(format!("{sql}: {}", error.message()));
    runtime.block_on(async { engine.run(sql).await.map_err(said)?.collect().await.map_err(said) })
}
