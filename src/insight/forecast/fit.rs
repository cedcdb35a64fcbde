//! Fits a model to a history and draws its path ahead: MSTL with exponential smoothing where seasons are known,
//! exponential smoothing where not, the (seasonal) naive forecast where neither gives finite numbers.
//!
//! Only models with additive errors are considered: their intervals have a closed form, while those of the others are
//! simulated by augurs from an unseeded generator, and would differ from one run to the next.

use augurs::ets::AutoETS;
use augurs::mstl::MSTLModel;
use augurs::{Fit, Forecast, Predict};
use serde::{Deserialize, Serialize};

use crate::insight::exact;

/// Which model drew a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    Constant,
    Ets,
    MstlEts,
    Naive,
    SeasonalNaive,
}

impl Model {
    pub fn as_str(self) -> &'static str {
        match self {
            Model::Constant => "constant",
            Model::Ets => "ets",
            Model::MstlEts => "mstl_ets",
            Model::Naive => "naive",
            Model::SeasonalNaive => "seasonal_naive",
        }
    }
}

/// The points ahead of a history, as a model saw them when it was fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    pub model: Model,
    #[serde(with = "exact")]
    pub yhat: Vec<f64>,
    /// The model's own half-widths, at the level asked for.
    #[serde(with = "exact")]
    pub half_width: Vec<f64>,
}

/// Fits the best model that the history allows, and draws its path so many steps ahead. `None` where even the simplest
/// gives no finite numbers.
pub fn fit(history: &[f64], season: Option<usize>, steps: usize, level: f64) -> Option<Path> {
    let first = *history.first()?;
    if history.iter().all(|value| *value == first) {
        return Some(Path { model: Model::Constant, yhat: vec![first; steps], half_width: vec![0.0; steps] });
    }
    let scaling = Scaling::of(history);
    let scaled: Vec<f64> = history.iter().map(|value| scaling.apply(*value)).collect();
    let season = season.filter(|season| *season >= 2 && scaled.len() >= 2 * season);
    let path = match season {
        Some(season) => mstl(&scaled, season, steps, level),
        None => ets(&scaled, steps, level),
    };
    let path = path.filter(Path::is_finite).or_else(|| naive(&scaled, season, steps, level));
    path.map(|path| scaling.undo(path)).filter(Path::is_finite)
}

impl Path {
    fn new(model: Model, forecast: Forecast) -> Option<Path> {
        let upper = forecast.intervals?.upper;
        let half_width = upper.iter().zip(&forecast.point).map(|(upper, yhat)| (upper - yhat).max(0.0)).collect();
        Some(Path { model, yhat: forecast.point, half_width })
    }

    fn is_finite(&self) -> bool {
        self.yhat.iter().chain(&self.half_width).all(|number| number.is_finite())
    }
}

/// Brings a history near zero and one: MSTL works in single precision, whose seven digits bytes or epochs would use up.
struct Scaling {
    centre: f64,
    unit: f64,
}

impl Scaling {
    fn of(history: &[f64]) -> Self {
        let n = history.len().max(1) as f64;
        let centre = history.iter().map(|value| value / n).sum::<f64>();
        let unit = history.iter().map(|value| (value - centre).abs() / n).sum::<f64>();
        Scaling { centre, unit: if unit > 0.0 { unit } else { 1.0 } }
    }

    fn apply(&self, value: f64) -> f64 {
        (value - self.centre) / self.unit
    }

    fn undo(&self, mut path: Path) -> Path {
        path.yhat.iter_mut().for_each(|yhat| *yhat = *yhat * self.unit + self.centre);
        path.half_width.iter_mut().for_each(|width| *width *= self.unit);
        path
    }
}

/// Trend and level of any kind, errors additive, no season.
fn smoothing() -> Option<AutoETS> {
    AutoETS::new(1, "AZN").ok()
}

fn ets(y: &[f64], steps: usize, level: f64) -> Option<Path> {
    let fitted = smoothing()?.fit(y).ok()?;
    Path::new(Model::Ets, fitted.predict(steps, level).ok()?)
}

/// The mean of MSTL and the seasonal naive forecast. On a series with a second, longer season, as load by day and week,
/// the last season says more than the trend, and MSTL alone is worse than repeating it; elsewhere the mean costs a
/// little accuracy.
///
/// augurs takes the widths of the trend's intervals alone; the seasons' uncertainty is left to the calibration.
fn mstl(y: &[f64], season: usize, steps: usize, level: f64) -> Option<Path> {
    let fitted = MSTLModel::new(vec![season], smoothing()?.into_trend_model()).fit(y).ok()?;
    let mut path = Path::new(Model::MstlEts, fitted.predict(steps, level).ok()?)?;
    let repeated = naive(y, Some(season), steps, level)?;
    path.yhat.iter_mut().zip(repeated.yhat).for_each(|(yhat, last)| *yhat = (*yhat + last) / 2.0);
    Some(path)
}

/// Repeats the last season, or the last value. Half-widths as for a random walk, from the errors it made on the history
/// (Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed., 5.5).
fn naive(y: &[f64], season: Option<usize>, steps: usize, level: f64) -> Option<Path> {
    let lag = season.unwrap_or(1);
    let cycle = y.get(y.len().checked_sub(lag)?..)?;
    let squares = y.iter().zip(y.iter().skip(lag)).map(|(then, now)| (now - then).powi(2));
    let deviation = (squares.sum::<f64>() / (y.len() - lag).max(1) as f64).sqrt();
    let z = two_sided_normal_quantile(level);
    Some(Path {
        model: if season.is_some() { Model::SeasonalNaive } else { Model::Naive },
        yhat: cycle.iter().copied().cycle().take(steps).collect(),
        half_width: (0..steps).map(|step| z * deviation * ((step / lag + 1) as f64).sqrt()).collect(),
    })
}

/// Returns z with P(|N(0, 1)| <= z) = level, by Winitzki's approximation of the inverse error function (relative error
/// below 0.004; the calibration replaces these widths soon).
fn two_sided_normal_quantile(level: f64) -> f64 {
    const A: f64 = 0.147;
    let log = (1.0 - level * level).ln();
    let half = 2.0 / (std::f64::consts::PI * A) + log / 2.0;
    ((half * half - log / A).sqrt() - half).sqrt() * std::f64::consts::SQRT_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_quantiles_are_those_of_the_tables() {
        for (level, z) in [(0.5, 0.6745), (0.8, 1.2816), (0.95, 1.9600), (0.99, 2.5758)] {
            let got = two_sided_normal_quantile(level);
            assert!((got - z).abs() < 0.01, "{level}: {got}");
        }
    }

    #[test]
    fn seasons_are_followed_at_any_magnitude() {
        for magnitude in [1e-6, 1.0, 1e12] {
            let value = |t: usize| magnitude * (100.0 + (t % 12) as f64 + 0.5 * ((t * 7 % 5) as f64 - 2.0));
            let history: Vec<f64> = (0..120).map(value).collect();
            let path = fit(&history, Some(12), 24, 0.9).unwrap();
            assert_eq!(path.model, Model::MstlEts);
            for (ahead, yhat) in path.yhat.iter().enumerate() {
                assert!((yhat - value(120 + ahead)).abs() < 2.5 * magnitude, "{ahead}: {yhat}");
            }
        }
    }

    #[test]
    fn one_season_is_not_enough_for_a_seasonal_model() {
        let history: Vec<f64> = (0..20).map(|t| f64::from(t % 12)).collect();
        assert_eq!(fit(&history, Some(12), 3, 0.9).unwrap().model, Model::Ets);
    }

    #[test]
    fn the_naive_forecast_repeats_the_last_season() {
        let path = naive(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Some(3), 5, 0.9).unwrap();
        assert_eq!(path.yhat, [4.0, 5.0, 6.0, 4.0, 5.0]);
        assert!(path.half_width[3] > path.half_width[2]);
    }

    #[test]
    fn odd_histories_give_finite_numbers() {
        let spike: Vec<f64> = (0..30).map(|t| if t == 15 { 1e90 } else { 0.0 }).collect();
        let tiny: Vec<f64> = (0..30).map(|t| f64::from(t % 2) * f64::MIN_POSITIVE).collect();
        let line: Vec<f64> = (0..30).map(f64::from).collect();
        for history in [spike, tiny, line, vec![5.0; 30]] {
            for season in [None, Some(4)] {
                assert!(fit(&history, season, 10, 0.9).is_some_and(|path| path.is_finite()), "{history:?}");
            }
        }
    }
}
