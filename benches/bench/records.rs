//! Records to measure with: the five formats, spread over series and services like those of a fleet. Deterministic.

use std::fmt::Write;
use std::sync::Arc;

use bellwether::ingest::Format;
use bellwether::run::incoming::Incoming;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Event time of the first record, milliseconds.
pub const START_MS: i64 = 1_767_600_000_000;

/// Twenty minutes, so that every view closes windows on the way.
const SPAN_MS: i64 = 1_200_000;
/// How often a series reports, where their number is what is measured.
const EVERY_MS: i64 = 10_000;

/// Points in one OTLP message, and lines in one Influx message.
pub const POINTS_PER_MESSAGE: usize = 100;

/// A set of records of one format.
pub struct Set {
    pub topic: Arc<str>,
    pub payloads: Vec<Vec<u8>>,
    /// Samples or events in all of them.
    pub points: usize,
    /// The event time that they cover.
    pub span_ms: i64,
}

impl Set {
    pub fn make(format: Format, points: usize, series: usize) -> Set {
        let mut rng = StdRng::seed_from_u64(7);
        let payloads = match format {
            Format::JsonMetrics => (0..points).map(|n| json_metric(n, points, series, &mut rng)).collect(),
            Format::JsonEvents => (0..points).map(|n| json_event(n, points, &mut rng)).collect(),
            Format::CloudEvents => (0..points).map(|n| cloud_event(n, points, &mut rng)).collect(),
            Format::OtlpMetrics => chunks(points).map(|from| otlp(from, points, series, &mut rng)).collect(),
            Format::InfluxLine => chunks(points).map(|from| influx(from, points, series, &mut rng)).collect(),
        };
        Set { topic: format.as_str().into(), payloads, points, span_ms: SPAN_MS }
    }

    /// Makes JSON metrics, so many in a second of event time.
    pub fn make_dense(points: usize, series: usize, per_second: usize) -> Set {
        let mut rng = StdRng::seed_from_u64(7);
        let span_ms = points * 1000 / per_second;
        let payloads = (0..points).map(|n| json_metric_at(START_MS + (n * span_ms / points) as i64, series, &mut rng));
        Set { topic: "dense".into(), payloads: payloads.collect(), points, span_ms: span_ms as i64 }
    }

    /// Makes samples without a time of their own, the series one after the other, each every ten seconds, so
    /// that all of them are seen and a set can be sent more than once.
    pub fn of_series(points: usize, series: usize) -> Set {
        let mut rng = StdRng::seed_from_u64(7);
        let payloads = (0..points).map(|n| {
            let one = n.wrapping_mul(7919) % series;
            let (service, value) = (one % 20, seconds(&mut rng));
            format!(
                r#"{{"name":"request_duration_seconds","labels":{{"service":"service-{service}","replica":"replica-{one}","status":"200"}},"value":{value}}}"#
            )
            .into_bytes()
        });
        let span_ms = (points as i64 * EVERY_MS) / series as i64;
        Set { topic: "of_series".into(), payloads: payloads.collect(), points, span_ms }
    }

    /// Returns the time a record would be stamped with by its producer, where a set is sent more than once.
    pub fn timestamp_ms(&self, pass: usize, offset: usize) -> i64 {
        let within = offset - pass * self.payloads.len();
        START_MS + pass as i64 * self.span_ms + within as i64 * self.span_ms / self.payloads.len() as i64
    }

    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(Vec::len).sum()
    }
}

fn chunks(points: usize) -> impl Iterator<Item = usize> {
    (0..points).step_by(POINTS_PER_MESSAGE)
}

/// Times rise evenly.
fn at_ms(n: usize, of: usize) -> i64 {
    START_MS + (n as i64 * SPAN_MS) / of.max(1) as i64
}

fn seconds(rng: &mut StdRng) -> f64 {
    (rng.random_range(1.0f64..400.0) * 1e3).round() / 1e6
}

fn json_metric(n: usize, of: usize, series: usize, rng: &mut StdRng) -> Vec<u8> {
    json_metric_at(at_ms(n, of), series, rng)
}

fn json_metric_at(at_ms: i64, series: usize, rng: &mut StdRng) -> Vec<u8> {
    let one = rng.random_range(0..series);
    let status = if rng.random_bool(0.02) { 500 } else { 200 };
    format!(
        r#"{{"ts":{},"name":"request_duration_seconds","labels":{{"service":"service-{}","replica":"replica-{one}","status":"{status}"}},"value":{}}}"#,
        at_ms,
        one % 20,
        seconds(rng)
    )
    .into_bytes()
}

fn json_event(n: usize, of: usize, rng: &mut StdRng) -> Vec<u8> {
    let workflow = rng.random_range(0..50);
    let outcome = if rng.random_bool(0.05) { "failure" } else { "success" };
    format!(
        r#"{{"ts":{},"id":"e{n}","source":"scheduler","type":"workflow.completed","subject":"workflow-{workflow}","outcome":"{outcome}","duration_ms":{},"attributes":{{"workflow":"workflow-{workflow}","team":"data"}}}}"#,
        at_ms(n, of),
        rng.random_range(100..90_000)
    )
    .into_bytes()
}

fn cloud_event(n: usize, of: usize, rng: &mut StdRng) -> Vec<u8> {
    let at = bellwether::model::time::EventTime::from_micros(at_ms(n, of) * 1000);
    let run = rng.random_range(0..50);
    format!(
        r#"{{"specversion":"1.0","id":"c{n}","source":"ci","type":"dev.cdevents.pipelinerun.finished.0.2.0","time":"{at}","data":{{"context":{{"version":"0.4.1","id":"c{n}","source":"ci","type":"dev.cdevents.pipelinerun.finished.0.2.0","timestamp":"{at}"}},"subject":{{"id":"run-{n}","type":"pipelineRun","content":{{"pipelineName":"pipeline-{run}","outcome":"success"}}}}}}}}"#
    )
    .into_bytes()
}

fn influx(from: usize, of: usize, series: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut text = String::new();
    for n in from..(from + POINTS_PER_MESSAGE).min(of) {
        let one = rng.random_range(0..series);
        let ratio = rng.random_range(0..10_000) as f64 / 10_000.0;
        let ns = at_ms(n, of) * 1_000_000;
        let service = one % 20;
        let _ = writeln!(
            text,
            "resource_use,service=service-{service},replica=replica-{one},resource=cpu ratio={ratio} {ns}"
        );
    }
    text.into_bytes()
}

/// `MetricsData` by hand: one resource, one scope, one gauge with a hundred points.
fn otlp(from: usize, of: usize, series: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut gauge = Vec::new();
    for n in from..(from + POINTS_PER_MESSAGE).min(of) {
        let one = rng.random_range(0..series);
        let mut point = Vec::new();
        point.push(0x19); // time_unix_nano = 3, fixed64
        point.extend_from_slice(&((at_ms(n, of) * 1_000_000) as u64).to_le_bytes());
        point.push(0x21); // as_double = 4
        point.extend_from_slice(&f64::from(rng.random_range(0..500)).to_le_bytes());
        field(&mut point, 7, &attribute("service", &format!("service-{}", one % 20)));
        field(&mut point, 7, &attribute("replica", &format!("replica-{one}")));
        field(&mut gauge, 1, &point);
    }
    let mut metric = Vec::new();
    field(&mut metric, 1, b"queue_depth");
    field(&mut metric, 5, &gauge);
    let (mut scope, mut resource, mut all, mut message) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    field(&mut scope, 2, &metric);
    field(&mut resource, 1, &attribute("service.name", "fleet"));
    field(&mut all, 1, &resource);
    field(&mut all, 2, &scope);
    field(&mut message, 1, &all);
    message
}

fn attribute(key: &str, value: &str) -> Vec<u8> {
    let (mut any, mut pair) = (Vec::new(), Vec::new());
    field(&mut any, 1, value.as_bytes());
    field(&mut pair, 1, key.as_bytes());
    field(&mut pair, 2, &any);
    pair
}

fn field(into: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    into.push(number << 3 | 2);
    let mut len = bytes.len();
    while len >= 0x80 {
        into.push(len as u8 | 0x80);
        len >>= 7;
    }
    into.push(len as u8);
    into.extend_from_slice(bytes);
}

/// A record in memory.
pub struct InMemory<'a> {
    pub topic: &'a Arc<str>,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub payload: &'a [u8],
}

impl Incoming for InMemory<'_> {
    fn topic(&self) -> &Arc<str> {
        self.topic
    }

    fn partition(&self) -> i32 {
        0
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn timestamp_ms(&self) -> Option<i64> {
        Some(self.timestamp_ms)
    }

    fn key(&self) -> Option<&[u8]> {
        None
    }

    fn value(&self) -> Option<&[u8]> {
        Some(self.payload)
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        Vec::new()
    }
}
