//! Tests of the feature frame, with the control that it never looks ahead.

use super::*;
use crate::model::time::EventTime;

const HOUR_MICROS: i64 = 3_600_000_000;

fn run(subject: &str, hour: i64, outcome: &str, duration_ms: f64) -> Event {
    Event {
        ts: EventTime::from_micros(hour * HOUR_MICROS),
        subject: subject.to_owned(),
        outcome: Some(outcome.to_owned()),
        duration_ms: Some(duration_ms),
        ..Event::default()
    }
}

fn of(events: &[Event]) -> Features {
    let mut runs = Runs::default();
    events.iter().for_each(|event| assert!(runs.push(event)));
    features(&runs).unwrap()
}

fn column(features: &Features, name: &str) -> Vec<f64> {
    features.column(name).unwrap().to_vec()
}

/// Bits, so that NaN equals NaN.
fn bits(features: &Features, rows: usize) -> Vec<Vec<u64>> {
    features.columns().map(|(_, values)| values[..rows].iter().map(|value| value.to_bits()).collect()).collect()
}

fn history() -> Vec<Event> {
    let outcomes = ["success", "failure", "failure", "success", "success", "success", "failure", "success"];
    let subject = |n: usize| if n.is_multiple_of(3) { "deploy" } else { "build" };
    (0..80).map(|n| run(subject(n), n as i64, outcomes[n * 5 % 8], 100.0 + (n * 13 % 40) as f64)).collect()
}

#[test]
fn a_small_history_by_hand() {
    let features = of(&[
        run("build", 0, "success", 100.0),
        run("build", 2, "success", 300.0),
        run("build", 3, "failure", 200.0),
        run("build", 7, "failure", 200.0),
        run("build", 8, "success", 50.0),
        run("build", 9, "success", 50.0),
    ]);
    assert_eq!(column(&features, "runs"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(column(&features, "streak")[1..], [-1.0, -2.0, 1.0, 2.0, -1.0]);
    assert_eq!(column(&features, "gap_s")[1..], [7200.0, 3600.0, 14400.0, 3600.0, 3600.0]);
    assert_eq!(column(&features, "duration_last_ms")[1..4], [100.0, 300.0, 200.0]);
    assert_eq!(column(&features, "duration_mean_ms")[1..4], [100.0, 200.0, 200.0]);
    assert_eq!(column(&features, "duration_ratio")[1..4], [1.0, 1.5, 1.0]);
    // The first of January 1970 was a Thursday.
    assert_eq!(column(&features, "weekday"), [4.0; 6]);
    assert_eq!(column(&features, "hour"), [0.0, 2.0, 3.0, 7.0, 8.0, 9.0]);
    for name in ["streak", "gap_s", "duration_last_ms", "duration_mean_ms", "duration_ratio"] {
        assert!(column(&features, name)[0].is_nan(), "{name}");
    }
    // One failure in three runs, overall (1 + 0.1) / (3 + 1).
    let expected = (1.0 + 5.0 * 1.1 / 4.0) / (3.0 + 5.0);
    assert!((column(&features, "failure_rate_10")[3] - expected).abs() < 1e-12);
}

#[test]
fn subjects_do_not_mix() {
    let events = history();
    let together = of(&events);
    let builds: Vec<usize> = (0..events.len()).filter(|n| events[*n].subject == "build").collect();
    let apart = of(&builds.iter().map(|n| events[*n].clone()).collect::<Vec<_>>());
    for name in ["runs", "streak", "gap_s", "duration_mean_ms"] {
        let all = column(&together, name);
        let picked: Vec<u64> = builds.iter().map(|n| all[*n].to_bits()).collect();
        let own: Vec<u64> = column(&apart, name).iter().map(|value| value.to_bits()).collect();
        assert_eq!(picked, own, "{name}");
    }
}

#[test]
fn rows_come_out_in_the_order_they_went_in() {
    let events = history();
    let reversed: Vec<Event> = events.iter().rev().cloned().collect();
    let mut backwards = column(&of(&reversed), "runs");
    backwards.reverse();
    assert_eq!(backwards, column(&of(&events), "runs"));
}

#[test]
fn neither_the_own_outcome_nor_the_future_is_seen() {
    let events = history();
    let whole = of(&events);
    for at in [0, 1, 2, 40, 79] {
        let mut other = events.clone();
        for event in &mut other[at..] {
            let flipped = if event.outcome.as_deref() == Some("success") { "failure" } else { "success" };
            event.outcome = Some(flipped.to_owned());
            event.duration_ms = Some(1e6);
        }
        assert_eq!(bits(&of(&other), at + 1), bits(&whole, at + 1), "row {at}");
        assert_eq!(bits(&of(&events[..=at]), at + 1), bits(&whole, at + 1), "cut after row {at}");
    }
}

/// The control of the test above: a row's outcome must show in the rows after it, or the comparison proves nothing.
#[test]
fn the_past_is_seen() {
    let events = history();
    let mut other = events.clone();
    other[40].outcome =
        Some(if events[40].outcome.as_deref() == Some("success") { "failure" } else { "success" }.into());
    assert_ne!(bits(&of(&other), 80), bits(&of(&events), 80));
}

#[test]
fn events_without_a_known_outcome_are_left_out() {
    let mut runs = Runs::default();
    assert!(!runs.push(&run("build", 0, "cancelled", 1.0)));
    assert!(!runs.push(&Event { outcome: None, ..run("build", 0, "", 1.0) }));
    assert!(runs.is_empty());
    assert_eq!(features(&runs).unwrap().column("runs"), Some([].as_slice()));
}
