//! Tests of the forecaster: accuracy against the trivial baselines, coverage, gaps and restoring.

use super::backtest::backtest;
use super::*;

const STEP: Duration = Duration::from_secs(60);

fn settings(season: Option<usize>, horizon: usize) -> Settings {
    let request = Request { step: STEP, season, horizon, level: 0.9, history_max: 400, refit_every: 10 };
    Settings::try_new(request).unwrap()
}

fn at(step: usize) -> EventTime {
    EventTime::from_micros(step as i64 * 60_000_000)
}

/// A daily rhythm of 24 steps with noise that is the same in every run.
fn rhythm(len: usize) -> Vec<f64> {
    let mut state = 9u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let value = |t: usize| 100.0 + 40.0 * (t as f64 / 24.0 * std::f64::consts::TAU).sin();
    (0..len).map(|t| value(t) + 10.0 * (noise() + noise() + noise())).collect()
}

fn fed(settings: Settings, values: &[f64]) -> Forecaster {
    let mut forecaster = Forecaster::new(settings);
    for (step, value) in values.iter().enumerate() {
        forecaster.observe(at(step), *value).unwrap();
    }
    forecaster
}

#[test]
fn a_season_is_forecast_better_than_naively_and_the_intervals_hold() {
    let report = backtest(settings(Some(24), 12), at(0), &rhythm(1000), 200).unwrap();
    assert!(report.mase < 0.9 * report.mase_seasonal_naive, "{report:?}");
    assert!(report.mase < 0.2 * report.mase_last_value, "{report:?}");
    assert!((0.86..=0.95).contains(&report.coverage), "{report:?}");
}

#[test]
fn a_trend_is_continued() {
    let values: Vec<f64> = (0..60).map(|t| 5.0 * f64::from(t)).collect();
    let points = fed(settings(None, 10), &values).issue(at(59)).unwrap();
    assert_eq!(points.len(), 10);
    assert_eq!(points[0].target_time, at(60));
    let last = points.last().unwrap();
    assert_eq!(last.target_time, at(69));
    assert!((last.yhat - 345.0).abs() < 5.0, "{last:?}");
    assert!(last.yhat_lower <= last.yhat && last.yhat <= last.yhat_upper);
}

#[test]
fn a_short_history_is_a_typed_abstention() {
    let mut forecaster = fed(settings(None, 5), &[1.0, 2.0, 3.0]);
    assert_eq!(forecaster.issue(at(2)), Err(Abstention::ShortHistory { have: 3, need: Forecaster::POINTS_MIN }));
}

#[test]
fn short_gaps_are_filled_and_long_ones_begin_anew() {
    let mut forecaster = fed(settings(None, 5), &rhythm(50));
    forecaster.observe(at(50 + Forecaster::GAP_MAX), 100.0).unwrap();
    assert!(forecaster.issue(at(50 + Forecaster::GAP_MAX)).is_ok());
    let later = 50 + 2 * Forecaster::GAP_MAX + 2;
    forecaster.observe(at(later), 100.0).unwrap();
    let (missing, max) = (Forecaster::GAP_MAX + 1, Forecaster::GAP_MAX);
    assert_eq!(forecaster.issue(at(later)), Err(Abstention::Gap { missing, max }));
}

#[test]
fn silence_is_bridged_only_so_long() {
    let mut forecaster = fed(settings(None, 5), &rhythm(50));
    let points = forecaster.issue(at(49 + Forecaster::GAP_MAX)).unwrap();
    assert_eq!(points.len(), 5);
    assert_eq!(points[0].target_time, at(50 + Forecaster::GAP_MAX));
    assert!(matches!(forecaster.issue(at(50 + Forecaster::GAP_MAX)), Err(Abstention::Gap { .. })));
}

#[test]
fn what_cannot_be_used_is_refused_and_leaves_no_trace() {
    let mut forecaster = fed(settings(None, 5), &rhythm(30));
    let before = forecaster.clone();
    assert!(matches!(forecaster.observe(at(30), f64::NAN), Err(Abstention::Unusable { .. })));
    assert!(matches!(forecaster.observe(at(29), 1.0), Err(Abstention::OutOfOrder { .. })));
    assert!(matches!(forecaster.issue(at(3)), Err(Abstention::OutOfOrder { .. })));
    assert_eq!(forecaster, before);
}

#[test]
fn the_future_does_not_change_a_forecast() {
    let values = rhythm(300);
    let mut short = Forecaster::new(settings(Some(24), 6));
    let mut long = short.clone();
    let mut issued = Vec::new();
    for (step, value) in values.iter().take(200).enumerate() {
        short.observe(at(step), *value).unwrap();
        issued.push(short.issue(at(step)));
    }
    for (step, value) in values.iter().enumerate() {
        long.observe(at(step), *value).unwrap();
        let points = long.issue(at(step));
        if step < 200 {
            assert_eq!(points, issued[step]);
        }
    }
}

#[test]
fn a_restored_forecaster_continues_bit_for_bit() {
    let mut whole = Forecaster::new(settings(Some(24), 6));
    let mut cut = whole.clone();
    for (step, value) in rhythm(200).into_iter().enumerate() {
        if step % 37 == 20 {
            cut = serde_json::from_str(&serde_json::to_string(&cut).unwrap()).unwrap();
        }
        whole.observe(at(step), value).unwrap();
        cut.observe(at(step), value).unwrap();
        assert_eq!(whole.issue(at(step)), cut.issue(at(step)));
    }
    assert_eq!(whole, cut);
}

#[test]
fn memory_is_bounded() {
    let mut forecaster = Forecaster::new(settings(None, 100));
    for (step, value) in rhythm(3000).into_iter().enumerate() {
        forecaster.observe(at(step), value).unwrap();
        if step % 10 == 0 {
            let _ = forecaster.issue(at(step));
        }
    }
    assert!(forecaster.history.len() <= 400);
    assert!(forecaster.pending.len() <= Forecaster::PENDING_MAX);
}

#[test]
fn settings_out_of_range_are_refused() {
    let good = Request { step: STEP, season: None, horizon: 5, level: 0.9, history_max: 100, refit_every: 1 };
    assert!(Settings::try_new(good).is_ok());
    let broken = [
        Request { step: Duration::ZERO, ..good },
        Request { season: Some(1), ..good },
        Request { season: Some(51), ..good },
        Request { horizon: 0, ..good },
        Request { level: 1.0, ..good },
        Request { level: f64::NAN, ..good },
        Request { history_max: 3, ..good },
        Request { refit_every: 0, ..good },
    ];
    for request in broken {
        assert!(Settings::try_new(request).is_err(), "{request:?}");
    }
}
