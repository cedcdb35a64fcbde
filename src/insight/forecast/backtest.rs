//! How good a forecaster would have been: rolling origins over recorded history, in order of time.
//!
//! The same code as live issues every forecast, so that it knows at each origin what it would have known then.

use super::{Abstention, Forecaster, Settings};
use crate::model::time::EventTime;

/// The quality of a forecaster on one series, beside that of the trivial ones on the very same moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// How many forecasts were compared with what came.
    pub forecasts: usize,
    /// Mean absolute scaled error: relative to the mean absolute error of the one-season-ahead (one-step-ahead, without
    /// season) naive forecast on the points before the first origin (Hyndman & Koehler 2006).
    pub mase: f64,
    /// The same for the seasonal naive forecast; that of the last value without a season.
    pub mase_seasonal_naive: f64,
    /// The same for the last value.
    pub mase_last_value: f64,
    /// The share of moments within their interval, in [0, 1].
    pub coverage: f64,
}

#[derive(Default)]
struct Sums {
    moments: usize,
    covered: usize,
    model: f64,
    seasonal: f64,
    last: f64,
}

/// Runs a forecaster over `values`, one per step from `start`, issuing a forecast after each of those from `warm` on.
///
/// # Errors
/// `ShortHistory` where no forecast can be compared: `values` must be longer than `warm` by more than the horizon.
pub fn backtest(settings: Settings, start: EventTime, values: &[f64], warm: usize) -> Result<Report, Abstention> {
    let warm = warm.max(Forecaster::POINTS_MIN);
    let need = warm + settings.horizon + 1;
    if values.len() < need {
        return Err(Abstention::ShortHistory { have: values.len(), need });
    }
    let mut forecaster = Forecaster::new(settings);
    let (mut sums, mut forecasts) = (Sums::default(), 0);
    let mut at = start;
    for (position, value) in values.iter().enumerate() {
        forecaster.observe(at, *value)?;
        let (known, future) = values.split_at(position + 1);
        if known.len() >= warm && future.len() >= settings.horizon {
            compare(&mut sums, &forecaster.issue(at)?, known, future, settings.season);
            forecasts += 1;
        }
        at = at + settings.step;
    }
    let unit = naive_error(values.get(..warm).unwrap_or(values), settings.season);
    let mase = |sum: f64| sum / sums.moments.max(1) as f64 / unit;
    Ok(Report {
        forecasts,
        mase: mase(sums.model),
        mase_seasonal_naive: mase(sums.seasonal),
        mase_last_value: mase(sums.last),
        coverage: sums.covered as f64 / sums.moments.max(1) as f64,
    })
}

fn compare(sums: &mut Sums, points: &[super::Point], known: &[f64], future: &[f64], season: Option<usize>) {
    let last = known.last().copied().unwrap_or(0.0);
    let cycle = season.and_then(|season| known.get(known.len().checked_sub(season)?..)).unwrap_or(&[]);
    let seasonal = cycle.iter().copied().cycle().chain(std::iter::repeat(last));
    for ((point, truth), seasonal) in points.iter().zip(future).zip(seasonal) {
        sums.moments += 1;
        sums.covered += usize::from(point.yhat_lower <= *truth && *truth <= point.yhat_upper);
        sums.model += (point.yhat - truth).abs();
        sums.seasonal += (seasonal - truth).abs();
        sums.last += (last - truth).abs();
    }
}

fn naive_error(values: &[f64], season: Option<usize>) -> f64 {
    let lag = season.filter(|season| *season < values.len()).unwrap_or(1);
    let errors: f64 = values.iter().zip(values.iter().skip(lag)).map(|(then, now)| (now - then).abs()).sum();
    (errors / values.len().saturating_sub(lag).max(1) as f64).max(f64::MIN_POSITIVE)
}
