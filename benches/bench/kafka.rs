//! The whole path on a real Kafka, named by `BW_KAFKA` (bootstrap servers): a preloaded topic, one service, until all is
//! consumed and committed.

use std::time::Duration;

use anyhow::{Context, Result};
use bellwether::ingest::Format;
use bellwether::kafka::admin::{self, Topic};
use bellwether::kafka::producer::Producer;
use bellwether::run::service;
use bellwether::telemetry::Telemetry;

use super::measure::{Results, once, resident_mib};
use super::pipeline::settings;
use super::records::Set;

const PARTITIONS: i32 = 2;
const TIMEOUT: Duration = Duration::from_secs(300);

pub fn run(filter: &str, results: &mut Results) -> Result<()> {
    let wanted: Vec<Format> =
        Format::ALL.into_iter().filter(|format| format!("kafka/{}", format.as_str()).contains(filter)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let Ok(brokers) = std::env::var("BW_KAFKA") else {
        println!("skipped: kafka/* (BW_KAFKA names no broker; `make bench` starts one)");
        return Ok(());
    };
    for format in wanted {
        let set = Set::make(format, 1_000_000, 1_000);
        let topic = format!("bench.{}.{}", format.as_str(), std::process::id());
        let folder = tempfile::tempdir()?;
        let settings = settings(&folder.path().display().to_string(), &topic, format, &brokers)?;
        preload(&settings.kafka, &topic, &set)?;
        let telemetry = Telemetry::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let records = set.payloads.len();
        let (peak, took) = once(|| runtime.block_on(consume(settings, telemetry, records)))?;
        let name = format!("kafka/{}", format.as_str());
        let unit = if set.payloads.len() == set.points { "records/s" } else { "points/s" };
        results.add_rates(&name, unit, set.points, &[took]);
        results.add(&format!("{name}/resident_peak"), "MiB", vec![peak]);
    }
    Ok(())
}

fn preload(kafka: &bellwether::kafka::settings::Settings, topic: &str, set: &Set) -> Result<()> {
    let wanted =
        Topic { name: topic.to_owned(), partitions: PARTITIONS, replication: Some(1), config: Default::default() };
    admin::ensure_topics(kafka, &[wanted], TIMEOUT)?;
    let producer = Producer::open(kafka)?;
    for (number, payload) in set.payloads.iter().enumerate() {
        let partition = number as i32 % PARTITIONS;
        producer.send(topic, Some(partition), None, Some(payload), &[], None)?;
    }
    Ok(producer.flush(TIMEOUT)?)
}

/// Runs the service until it has consumed everything and committed it; returns the most memory seen, in MiB.
async fn consume(settings: bellwether::run::settings::Settings, telemetry: Telemetry, records: usize) -> Result<f64> {
    let watched = telemetry.clone();
    let mut peak = 0.0f64;
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    let all_consumed = async {
        while consumed(&watched) < records {
            beat.tick().await;
            peak = peak.max(resident_mib().unwrap_or_default());
        }
    };
    let running = service::run(settings, telemetry, service::Hooks::default(), all_consumed);
    tokio::time::timeout(TIMEOUT, running).await.context("not all records were consumed in time")??;
    Ok(peak)
}

fn consumed(telemetry: &Telemetry) -> usize {
    let page = telemetry.render();
    let lines = page.lines().filter(|line| line.starts_with("bellwether_records_consumed_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as usize
}
