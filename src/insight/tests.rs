//! Tests of insight as a whole: closed windows in, findings out.

use super::settings::{AnomalySettings, ForecastSettings, OutlierSettings};
use super::*;
use crate::model::finding::Method;

const STEP: Duration = Duration::from_secs(60);

fn settings() -> Settings {
    Settings {
        anomalies: vec![AnomalySettings { view: "latency".into(), column: "p99".into(), by: vec!["service".into()] }],
        outliers: vec![OutlierSettings {
            view: "latency".into(),
            column: "p99".into(),
            group: vec!["service".into()],
            member: "pod".into(),
            windows: 5,
            windows_min: 3,
        }],
        forecasts: vec![ForecastSettings {
            view: "load".into(),
            column: "n".into(),
            by: vec!["service".into()],
            season: Some(Duration::from_secs(24 * 60)),
            horizon: Duration::from_secs(5 * 60),
            level: 0.9,
        }],
        tracks_max: 10,
    }
}

fn at(window: usize) -> EventTime {
    EventTime::from_micros(window as i64 * 60_000_000)
}

fn row(key: &[(&str, &str)], column: &str, value: f64) -> Row {
    Row {
        key: key.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        values: BTreeMap::from([(column.to_owned(), value)]),
    }
}

/// A value that wanders a little, the same in every run.
fn wobble(window: usize, salt: usize) -> f64 {
    10.0 + ((window * 7919 + salt * 104_729) % 101) as f64 / 100.0
}

fn latency(window: usize) -> Vec<Row> {
    let value = |pod: usize| match (window, pod) {
        (300..310, _) => 60.0,
        (400..410, 2) => 90.0,
        _ => wobble(window, pod),
    };
    let pods = ["a", "b", "c", "d"];
    (0..4).map(|pod| row(&[("service", "api"), ("pod", pods[pod])], "p99", value(pod))).collect()
}

fn load(window: usize) -> Vec<Row> {
    let daily = 50.0 + 20.0 * (window as f64 / 24.0 * std::f64::consts::TAU).sin();
    vec![row(&[("service", "api")], "n", daily + wobble(window, 0))]
}

/// Feeds one service by its own rows, so that a track sees one row a window.
fn service(window: usize) -> Vec<Row> {
    latency(window).into_iter().take(1).collect()
}

#[test]
fn a_regression_is_an_anomaly_and_a_drifting_pod_an_outlier() {
    let mut anomalies = settings();
    anomalies.outliers.clear();
    let mut outliers = settings();
    outliers.anomalies.clear();
    let (mut by_past, mut by_peers) = (Insight::new(&anomalies).unwrap(), Insight::new(&outliers).unwrap());
    let (mut regressions, mut drifts) = (Vec::new(), Vec::new());
    for window in 0..500 {
        regressions.extend(by_past.observe("latency", at(window), STEP, &service(window)).anomalies);
        drifts.extend(by_peers.observe("latency", at(window), STEP, &latency(window)).anomalies);
    }
    assert!(regressions.iter().any(|found| found.at == at(300) && found.method == Method::Residual), "{regressions:?}");
    let drifting: Vec<EventTime> = drifts.iter().map(|found| found.at).collect();
    assert_eq!(drifting, (402..410).map(at).collect::<Vec<_>>());
    assert!(drifts.iter().all(|found| found.track.key.get("pod").is_some_and(|pod| pod == "c")));
}

#[test]
fn forecasts_carry_the_end_of_the_windows_they_are_of() {
    let mut insight = Insight::new(&settings()).unwrap();
    let last = (0..100).map(|window| insight.observe("load", at(window), STEP, &load(window))).last().unwrap();
    let targets: Vec<EventTime> = last.forecasts.iter().map(|forecast| forecast.target_time).collect();
    assert_eq!(targets, (100..105).map(at).collect::<Vec<_>>());
    let first = &last.forecasts[0];
    assert_eq!((first.issued_at, first.level, first.model.as_str()), (at(99), 0.9, "mstl_ets"));
    assert!(first.yhat_lower <= first.yhat && first.yhat <= first.yhat_upper);
}

#[test]
fn missing_rows_are_not_zeros() {
    let mut insight = Insight::new(&settings()).unwrap();
    for window in 0..300 {
        let rows = if window % 10 == 9 { Vec::new() } else { service(window) };
        let findings = insight.observe("latency", at(window), STEP, &rows);
        assert_eq!(findings.scores.len(), usize::from(!rows.is_empty() && window >= 111), "window {window}");
    }
}

#[test]
fn a_window_told_twice_changes_nothing() {
    let mut insight = Insight::new(&settings()).unwrap();
    (0..150).for_each(|window| drop(insight.observe("latency", at(window), STEP, &service(window))));
    let saved = insight.save().unwrap();
    assert_eq!(insight.observe("latency", at(149), STEP, &service(149)), Findings::default());
    assert_eq!(insight.save().unwrap(), saved);
    assert!(insight.counts().abstentions.contains_key("anomaly_out_of_order"));
}

#[test]
fn tracks_beyond_the_limit_are_counted_and_the_others_go_on() {
    let mut insight = Insight::new(&Settings { outliers: Vec::new(), ..settings() }).unwrap();
    for window in 0..120 {
        let rows: Vec<Row> = (0..15).map(|n| row(&[("service", &n.to_string())], "p99", wobble(window, n))).collect();
        let findings = insight.observe("latency", at(window), STEP, &rows);
        assert!(window < 100 || findings.scores.len() == 10);
    }
    assert_eq!(insight.tracks(), 10);
    assert_eq!(insight.counts().tracks_refused, 5 * 120);
}

#[test]
fn rows_without_the_column_are_counted() {
    let mut insight = Insight::new(&settings()).unwrap();
    insight.observe("load", at(0), STEP, &[row(&[("service", "api")], "other", 1.0), row(&[], "n", 1.0)]);
    assert_eq!(insight.counts().rows_without_column, 2);
    assert_eq!(insight.tracks(), 0);
}

#[test]
fn restored_insight_continues_bit_for_bit() {
    let settings = settings();
    let mut whole = Insight::new(&settings).unwrap();
    let mut cut = whole.clone();
    for window in 0..450 {
        if window % 90 == 45 {
            cut = Insight::restore(&settings, &cut.save().unwrap()).unwrap();
        }
        for (view, rows) in [("latency", latency(window)), ("load", load(window))] {
            assert_eq!(whole.observe(view, at(window), STEP, &rows), cut.observe(view, at(window), STEP, &rows));
        }
    }
    assert_eq!(whole.save().unwrap(), cut.save().unwrap());
}

#[test]
fn an_entry_that_changed_begins_anew_and_the_others_keep_their_memory() {
    let mut insight = Insight::new(&settings()).unwrap();
    for window in 0..150 {
        insight.observe("latency", at(window), STEP, &service(window));
        insight.observe("load", at(window), STEP, &load(window));
    }
    let mut changed = settings();
    changed.anomalies[0].by.clear();
    let mut restored = Insight::restore(&changed, &insight.save().unwrap()).unwrap();
    assert!(restored.observe("latency", at(150), STEP, &service(150)).scores.is_empty());
    assert_eq!(restored.observe("load", at(150), STEP, &load(150)).forecasts.len(), 5);
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        Insight::new(&settings).unwrap_err().to_string()
    };
    assert!(refused(&|s| s.outliers[0].windows_min = 6).contains("windows_min"));
    assert!(refused(&|s| s.outliers[0].windows = 65).contains("64"));
    assert!(refused(&|s| s.forecasts[0].level = 1.0).contains("level"));
    assert!(refused(&|s| s.forecasts[0].horizon = Duration::ZERO).contains("horizon"));
    assert!(refused(&|s| s.anomalies.push(s.anomalies[0].clone())).contains("twice"));
    assert!(matches!(Insight::restore(&settings(), b"{"), Err(Error::Restore { .. })));
}
