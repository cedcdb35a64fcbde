//! From the record that closes a window to the alert a `read_committed` consumer sees, on a real Kafka under load: windows
//! of 200 ms, an alert that fires at one and resolves at the next. Event time is the time a record is produced, so an
//! alert's age when it is seen is the whole way: producer, broker, source, window, rule, transaction, broker, consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bellwether::ingest::Format;
use bellwether::kafka::admin::{self, Topic};
use bellwether::kafka::producer::Producer;
use bellwether::kafka::tail::Tail;
use bellwether::run::{service, shipped};
use bellwether::telemetry::Telemetry;

use super::measure::{Results, once};
use super::pipeline::settings;
use super::records::Set;

const PARTITIONS: i32 = 2;
const LASTS: Duration = Duration::from_secs(60);
/// Not counted: connections are made, the group forms.
const WARM_UP: Duration = Duration::from_secs(15);
const WINDOW: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(30);

const VIEW: &str = "CREATE MATERIALIZED VIEW pulse WITH (lateness = '0s') AS \
                    SELECT window_start, window_end, labels['service'] AS service, count(*) AS n \
                    FROM metrics GROUP BY tumble(ts, INTERVAL '200 ms'), labels['service']";
const RULE: &str = "-- severity: info\n-- summary: beats\n\
                    SELECT service, n AS value FROM pulse \
                    WHERE service = 'service-0' AND CAST(date_part('millisecond', window_end) AS BIGINT) / 200 % 2 = 0";

pub fn run(filter: &str, results: &mut Results) -> Result<()> {
    if !"latency/alert".contains(filter) {
        return Ok(());
    }
    let Ok(brokers) = std::env::var("BW_KAFKA") else {
        println!("skipped: latency/alert (BW_KAFKA names no broker; `make bench` starts one)");
        return Ok(());
    };
    for rate in [1_000, 200_000] {
        let (ages, cpu) = measure(&brokers, rate)?;
        let at = |share: f64| ages.get((ages.len() as f64 * share) as usize).or(ages.last()).copied();
        let name = format!("latency/alert_at_{rate}_per_second");
        for (which, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            results.add(&format!("{name}/{which}"), "ms", vec![at(share).context("no alert was seen")?]);
        }
        results.add(&format!("{name}/alerts"), "count", vec![ages.len() as f64]);
        results.add(&format!("{name}/cpu_cores_with_producer"), "cores", vec![cpu / (LASTS + WARM_UP).as_secs_f64()]);
    }
    Ok(())
}

/// Runs the service under a steady load; returns the ages of alerts when seen, sorted, in ms, and the CPU seconds of all.
fn measure(brokers: &str, rate: usize) -> Result<(Vec<f64>, f64)> {
    let topic = format!("bench.latency.{rate}.{}", std::process::id());
    let folder = tempfile::tempdir()?;
    let mut settings = settings(&folder.path().display().to_string(), &topic, Format::JsonMetrics, brokers)?;
    let sql = tempfile::tempdir()?;
    std::fs::write(sql.path().join("pulse.sql"), VIEW)?;
    settings.views = shipped::views(&sql.path().display().to_string(), settings.view_defaults)?.views;
    std::fs::write(sql.path().join("pulse.sql"), RULE)?;
    settings.rules = shipped::rules(&sql.path().display().to_string())?;
    (settings.insight, settings.targets) = Default::default();
    settings.evaluation_interval = WINDOW;
    settings.topics.alerts = format!("{topic}.alerts");
    let wanted = [&topic, &settings.topics.alerts].map(|name| Topic {
        name: name.clone(),
        partitions: PARTITIONS,
        replication: Some(1),
        config: Default::default(),
    });
    admin::ensure_topics(&settings.kafka, &wanted, TIMEOUT)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (kafka, alerts) = (settings.kafka.clone(), settings.topics.alerts.clone());
    let producer = {
        let (kafka, topic, stop) = (kafka.clone(), topic.clone(), stop.clone());
        std::thread::spawn(move || produce(&kafka, &topic, rate, &stop))
    };
    let reader = {
        let stop = stop.clone();
        std::thread::spawn(move || watch(&kafka, &alerts, &stop))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ((), took) = once(|| {
        let over = tokio::time::Duration::from_secs_f64((LASTS + WARM_UP).as_secs_f64());
        let shutdown = async move { tokio::time::sleep(over).await };
        runtime.block_on(service::run(settings, Telemetry::default(), service::Hooks::default(), shutdown))
    })?;
    stop.store(true, Ordering::SeqCst);
    let panicked = |_| anyhow::anyhow!("a thread panicked");
    producer.join().map_err(panicked)??;
    let mut ages = reader.join().map_err(panicked)??;
    ages.sort_by(f64::total_cmp);
    Ok((ages, took.cpu_seconds))
}

/// Sends records at an even pace, stamped with the time they are sent.
fn produce(kafka: &bellwether::kafka::settings::Settings, topic: &str, rate: usize, stop: &AtomicBool) -> Result<()> {
    let set = Set::of_series(100_000, 1_000);
    let producer = Producer::open(kafka)?;
    let (begun, mut sent) = (Instant::now(), 0);
    while !stop.load(Ordering::SeqCst) {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        while sent < due {
            let payload = &set.payloads[sent % set.payloads.len()];
            producer.send(topic, Some(sent as i32 % PARTITIONS), None, Some(payload), &[], None)?;
            sent += 1;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(producer.flush(TIMEOUT)?)
}

/// Reads alerts as they become visible; returns the age of each after the warm-up.
fn watch(kafka: &bellwether::kafka::settings::Settings, topic: &str, stop: &AtomicBool) -> Result<Vec<f64>> {
    let mut tail = Tail::open(kafka, &[topic])?;
    let counted_from = Instant::now() + WARM_UP;
    let mut ages = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let Some(message) = tail.next(Instant::now() + Duration::from_millis(100)) else { continue };
        #[allow(clippy::disallowed_methods, reason = "the age of an alert is what is measured")]
        let seen = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let alert: serde_json::Value = serde_json::from_slice(&message.value.unwrap_or_default())?;
        let at = alert["at"].as_str().and_then(bellwether::model::time::EventTime::parse_rfc3339);
        if Instant::now() >= counted_from {
            ages.push((seen - at.context("an alert has a time")?.as_secs_f64()) * 1e3);
        }
    }
    Ok(ages)
}
