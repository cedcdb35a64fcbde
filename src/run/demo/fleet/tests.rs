//! The fleet is the same for the same seed, and what it injects can be seen in what it sends.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn start() -> EventTime {
    EventTime::parse_rfc3339("2026-01-01T00:00:00Z").unwrap()
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

fn fleet(seed: u64) -> Fleet {
    Fleet::new(seed, Shape::default(), start())
}

fn json(emission: &Emission) -> Value {
    serde_json::from_slice(&emission.payload).unwrap()
}

/// The requests among what was sent, read once: time, service, replica, duration.
struct Requests(Vec<(EventTime, String, String, f64)>);

impl Requests {
    fn of(sent: &[Emission]) -> Self {
        let metrics = sent.iter().filter(|e| e.topic == METRICS).map(|e| (e.at, json(e)));
        let requests = metrics.filter(|(_, m)| m["name"] == "request_duration_seconds").map(|(at, m)| {
            let label = |name: &str| m["labels"][name].as_str().unwrap().to_owned();
            (at, label("service"), label("replica"), m["value"].as_f64().unwrap())
        });
        Requests(requests.collect())
    }

    /// Returns the sorted durations of requests to a service, or to one replica, within `[from, to)`.
    fn durations(&self, target: &str, from: EventTime, to: EventTime) -> Vec<f64> {
        let hits = |service: &str, replica: &str| service == target || replica == target;
        let within =
            self.0.iter().filter(|(at, service, replica, _)| from <= *at && *at < to && hits(service, replica));
        let mut found: Vec<f64> = within.map(|(.., duration)| *duration).collect();
        found.sort_by(f64::total_cmp);
        found
    }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

#[test]
fn the_same_seed_sends_the_same_bytes_however_the_time_is_cut() {
    let whole = fleet(7).advance(start() + minutes(25));
    let (mut other, mut pieces) = (fleet(7), Vec::new());
    for millis in (0..=25 * 60_000).step_by(1_700).chain([25 * 60_000]) {
        pieces.extend(other.advance(start() + Duration::from_millis(millis)));
    }
    assert_eq!(whole, pieces);
    assert_eq!(other.injected(), {
        let mut again = fleet(7);
        again.advance(start() + minutes(25));
        again.injected().to_vec()
    });
    assert_ne!(whole, fleet(8).advance(start() + minutes(25)));
    assert!(other.advance(start()).is_empty(), "time that was played is not played again");
}

#[test]
fn what_is_sent_is_in_order_of_time_and_well_formed() {
    let sent = fleet(1).advance(start() + minutes(12));
    assert!(sent.is_sorted_by_key(|e| e.at.floor(Duration::from_secs(1))));
    let topics: BTreeSet<&str> = sent.iter().map(|e| e.topic).collect();
    assert_eq!(topics, BTreeSet::from([METRICS, EVENTS, CLOUDEVENTS, OTLP, INFLUX]));
    for emission in &sent {
        assert!(start() <= emission.at && emission.at < start() + minutes(12));
        match emission.topic {
            INFLUX => {
                let line = std::str::from_utf8(&emission.payload).unwrap();
                let [series, field, nanos] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
                assert!(series.starts_with("resource_use,service=") && series.split(',').count() == 4, "{line}");
                let ratio: f64 = field.strip_prefix("ratio=").unwrap().parse().unwrap();
                assert!((0.0..0.9).contains(&ratio));
                assert_eq!(nanos.parse::<i64>().unwrap() / 1_000, emission.at.as_micros());
            }
            OTLP => {
                let point =
                    &json(emission)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["gauge"]["dataPoints"][0];
                assert!(point["asDouble"].as_f64().unwrap() >= 0.0);
                assert_eq!(point["timeUnixNano"], (emission.at.as_micros() * 1_000).to_string());
            }
            CLOUDEVENTS => {
                let event = json(emission);
                assert!(event["type"].as_str().unwrap().starts_with("dev.cdevents.service."));
                assert!(emission.headers[0].1.starts_with("application/cloudevents+json"));
            }
            _ => {
                let at = EventTime::parse_rfc3339(json(emission)["ts"].as_str().unwrap());
                assert_eq!(at, Some(emission.at));
            }
        }
    }
    let ids: Vec<Value> =
        sent.iter().filter(|e| [EVENTS, CLOUDEVENTS].contains(&e.topic)).map(|e| json(e)["id"].clone()).collect();
    let distinct: BTreeSet<String> = ids.iter().map(Value::to_string).collect();
    assert_eq!(distinct.len(), ids.len(), "ids are unique");
}

#[test]
fn every_kind_of_incident_happens_once_a_cycle_and_none_in_the_warmup() {
    for seed in 0..20 {
        let mut fleet = fleet(seed);
        fleet.advance(start() + minutes(10));
        assert_eq!(fleet.injected(), []);
        fleet.advance(start() + minutes(70));
        let kinds: BTreeSet<&str> = fleet.injected().iter().map(|i| i.kind).collect();
        assert_eq!((kinds.len(), fleet.injected().len()), (5, 5), "seed {seed}");
        assert!(fleet.injected().is_sorted_by_key(|i| i.start));
    }
}

#[test]
fn what_was_injected_can_be_seen_and_nothing_else_can() {
    for seed in 0..4 {
        let mut fleet = fleet(seed);
        let sent = fleet.advance(start() + minutes(90));
        let requests = Requests::of(&sent);
        for incident in fleet.injected().iter().filter(|i| i.end <= start() + minutes(90)) {
            let (from, to) = (incident.start, incident.end);
            let before = from - minutes(5);
            match incident.kind {
                "latency_regression" => {
                    assert!(quantile(&requests.durations(&incident.target, from, to), 0.95) > 1.5);
                    assert!(quantile(&requests.durations(&incident.target, before, from), 0.95) < 0.8);
                    let changes: Vec<Value> = sent.iter().filter(|e| e.topic == CLOUDEVENTS).map(json).collect();
                    let told = |kind: &str, at: EventTime| {
                        let kind = format!("dev.cdevents.service.{kind}.0.2.0");
                        changes.iter().any(|c| {
                            c["type"] == kind && c["time"] == at.to_string() && c["subject"] == incident.target
                        })
                    };
                    assert!(told("upgraded", from) && told("rolledback", to));
                }
                "replica_drift" => {
                    let (service, _) = incident.target.rsplit_once('-').unwrap();
                    let half = from + to.since(from) / 2;
                    let own = quantile(&requests.durations(&incident.target, half, to), 0.5);
                    let all = quantile(&requests.durations(service, half, to), 0.5);
                    assert!(own > 1.8 * all, "{own} against {all}");
                }
                "load_ramp" => {
                    let half = from + to.since(from) / 2;
                    let day = requests.durations(&incident.target, start(), start() + minutes(10)).len() as f64;
                    let on = requests.durations(&incident.target, half, to).len() as f64;
                    assert!(on / to.since(half).as_secs_f64() > 1.6 * day / 600.0);
                }
                "workflow_failure" => {
                    let ends: Vec<bool> = sent
                        .iter()
                        .filter(|e| e.topic == EVENTS && from <= e.at && e.at < to)
                        .map(json)
                        .filter(|e| e["type"] == "workflow.completed" && e["subject"] == *incident.target)
                        .map(|e| e["outcome"] == "failure")
                        .collect();
                    let failed = ends.iter().filter(|failed| **failed).count();
                    assert!(ends.len() > 40 && failed * 2 > ends.len(), "{failed} of {}", ends.len());
                }
                _ => {
                    let health: Vec<f64> = sent
                        .iter()
                        .filter(|e| e.topic == METRICS && from <= e.at && e.at < to)
                        .map(json)
                        .filter(|m| m["name"] == "component_health" && m["labels"]["component"] == *incident.target)
                        .map(|m| m["value"].as_f64().unwrap())
                        .collect();
                    assert!(health.len() >= 30 && health.iter().all(|h| *h == 0.0));
                }
            }
        }
        nothing_else_is_slow(&fleet, &requests);
    }
}

/// Outside of its regressions no service may come near the second at which the shipped rule speaks.
fn nothing_else_is_slow(fleet: &Fleet, requests: &Requests) {
    for service in fleet.services() {
        for minute in 0..90 {
            let (from, to) = (start() + minutes(minute), start() + minutes(minute + 1));
            let regresses =
                |i: &Injected| i.kind == "latency_regression" && i.target == service && i.start < to && from < i.end;
            let found = requests.durations(service, from, to);
            if found.len() >= 20 && !fleet.injected().iter().any(regresses) {
                assert!(quantile(&found, 0.95) < 1.0, "{service} in minute {minute}");
            }
        }
    }
}
