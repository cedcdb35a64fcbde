//! Prediction intervals from past errors: empirical conformal quantiles per horizon, adapted online.
//!
//! Errors come in units of the series' own variability, so that those of a quiet night and of a busy day can stand in one
//! pool. Below and above are calibrated apart: load is seldom symmetric. Adaptation is that of Gibbs & Candès, Adaptive
//! Conformal Inference Under Distribution Shift (2021). Must never assume a distribution.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::insight::exact;

/// The past errors of one forecaster. Horizons share pools that double in width, for a forecaster's memory must not grow
/// with its horizon: 1, 2, 3 to 4, 5 to 8, ….
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    #[serde(with = "exact")]
    level: f64,
    pools: Vec<Pool>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pool {
    /// Scaled errors, oldest first.
    #[serde(with = "exact")]
    errors: VecDeque<f64>,
    /// The share of misses aimed at, which is moved until the share seen is the nominal one.
    #[serde(with = "exact")]
    miss: f64,
}

impl Calibration {
    const ERRORS_MAX: usize = 400;
    /// How fast the aim follows the misses; the value of Gibbs & Candès.
    const RATE: f64 = 0.005;

    pub fn new(horizon: usize, level: f64) -> Self {
        let pool = Pool { errors: VecDeque::new(), miss: 1.0 - level };
        Calibration { level, pools: vec![pool; pool_of(horizon) + 1] }
    }

    /// Returns the half-widths of the intervals of all horizons as of now, in the series' unit.
    pub fn half_widths(&self, unit: f64) -> HalfWidths {
        HalfWidths { by_pool: self.pools.iter().map(|pool| pool.half_widths(self.level, unit)).collect() }
    }

    /// Learns the scaled error of a forecast made so many steps ahead, and whether its interval held the truth.
    pub fn learn(&mut self, ahead: usize, scaled_error: f64, covered: bool) {
        let nominal = 1.0 - self.level;
        let Some(pool) = self.pools.get_mut(pool_of(ahead)) else { return };
        if pool.errors.len() >= Self::ERRORS_MAX {
            pool.errors.pop_front();
        }
        pool.errors.push_back(scaled_error);
        let missed = if covered { 0.0 } else { 1.0 };
        pool.miss = (pool.miss + Self::RATE * (nominal - missed)).clamp(nominal / 20.0, (2.0 * nominal).min(0.99));
    }
}

/// How far intervals reach below and above the forecast, by horizon.
#[derive(Clone, Debug, PartialEq)]
pub struct HalfWidths {
    by_pool: Vec<Option<(f64, f64)>>,
}

impl HalfWidths {
    /// Returns the reach below and above so many steps ahead, both at least zero; `None` while the pool holds too few
    /// errors to have such quantiles.
    pub fn at(&self, ahead: usize) -> Option<(f64, f64)> {
        self.by_pool.get(pool_of(ahead)).copied().flatten()
    }
}

impl Pool {
    fn half_widths(&self, level: f64, unit: f64) -> Option<(f64, f64)> {
        // Less a rounding error: 2 / (1 - 0.9) is a little more than 20.
        let needed = ((2.0 / (1.0 - level) - 1e-9).ceil() as usize).min(Calibration::ERRORS_MAX);
        if self.errors.len() + 1 < needed {
            return None;
        }
        let mut sorted: Vec<f64> = self.errors.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        // The finite-sample quantile of split conformal prediction: the ceil((n + 1) q)-th smallest.
        let rank = ((sorted.len() + 1) as f64 * (1.0 - self.miss / 2.0)).ceil() as usize;
        let rank = rank.clamp(1, sorted.len());
        let (above, below) = (*sorted.get(rank - 1)?, -*sorted.get(sorted.len() - rank)?);
        Some((below.max(0.0) * unit, above.max(0.0) * unit))
    }
}

/// Returns the pool of a horizon, which is at least one.
fn pool_of(ahead: usize) -> usize {
    ahead.max(1).next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_double_in_width() {
        let pools: Vec<usize> = (1..=9).map(pool_of).collect();
        assert_eq!(pools, [0, 1, 2, 2, 3, 3, 3, 3, 4]);
    }

    #[test]
    fn the_quantiles_are_those_of_the_errors() {
        let mut calibration = Calibration::new(1, 0.9);
        for n in 0..100 {
            assert_eq!(calibration.half_widths(1.0).at(1).is_some(), n >= 19, "after {n} errors");
            // From -10 to 29.6, in an order that is not theirs.
            calibration.learn(1, f64::from(n * 37 % 100) * 0.4 - 10.0, n % 10 != 0);
        }
        let (below, above) = calibration.half_widths(2.0).at(1).unwrap();
        assert!((below - 2.0 * 8.4).abs() < 0.9, "{below}");
        assert!((above - 2.0 * 28.0).abs() < 0.9, "{above}");
    }

    #[test]
    fn misses_widen_and_hits_narrow() {
        let mut missing = Calibration::new(1, 0.8);
        let mut hitting = missing.clone();
        for n in 0..200 {
            missing.learn(1, f64::from(n), false);
            hitting.learn(1, f64::from(n), true);
        }
        assert!(missing.half_widths(1.0).at(1) > hitting.half_widths(1.0).at(1));
    }
}
