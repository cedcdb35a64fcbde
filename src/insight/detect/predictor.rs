//! What a detector expects of the next point: from the last few points, and from the same hour of earlier days.
//!
//! Predicts before it learns; must never allocate.

use serde::{Deserialize, Serialize};

use crate::insight::exact;
use crate::model::time::EventTime;

/// A linear prediction from the last three points around a moving mean, its weights learned by normalised least mean
/// squares (Haykin, Adaptive Filter Theory, ch. 6). Starts as "the same as the last point".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Autoregression {
    #[serde(with = "exact")]
    weights: [f64; 3],
    #[serde(with = "exact")]
    mean: f64,
    seen: u32,
}

impl Autoregression {
    /// Small enough that noise does not move the weights by much from one point to the next; stable below 2.
    const STEP: f64 = 0.02;
    const MEAN_RATE: f64 = 0.005;

    pub fn new() -> Self {
        Autoregression { weights: [1.0, 0.0, 0.0], mean: 0.0, seen: 0 }
    }

    /// Returns the prediction that follows the three last values, newest first.
    pub fn predict(&self, last: [f64; 3]) -> f64 {
        self.mean + self.deviation(last)
    }

    /// Learns that `value` followed the three last values, newest first.
    pub fn learn(&mut self, last: [f64; 3], value: f64) {
        self.seen = self.seen.saturating_add(1);
        self.mean += (1.0 / f64::from(self.seen)).max(Self::MEAN_RATE) * (value - self.mean);
        let energy: f64 = last.iter().map(|x| (x - self.mean).powi(2)).sum();
        if energy <= 0.0 {
            return;
        }
        let error = (value - self.mean) - self.deviation(last);
        for (weight, x) in self.weights.iter_mut().zip(last) {
            *weight += Self::STEP * error * (x - self.mean) / energy;
        }
    }

    fn deviation(&self, last: [f64; 3]) -> f64 {
        self.weights.iter().zip(last).map(|(weight, x)| weight * (x - self.mean)).sum()
    }
}

/// The mean of each hour of the day (UTC), over the last days.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DailySlots {
    #[serde(with = "exact")]
    mean: [f64; DailySlots::SLOTS],
    days: [u16; DailySlots::SLOTS],
    /// The running hour, counted from the epoch, with what it holds so far.
    hour: Option<i64>,
    #[serde(with = "exact")]
    sum: f64,
    points: u32,
}

impl DailySlots {
    const SLOTS: usize = 24;
    const HOUR_MICROS: i64 = 3_600_000_000;
    /// A slot is believed after this many days.
    const DAYS_MIN: u16 = 2;
    const DAY_RATE: f64 = 0.15;

    pub fn new() -> Self {
        DailySlots { mean: [0.0; Self::SLOTS], days: [0; Self::SLOTS], hour: None, sum: 0.0, points: 0 }
    }

    /// Returns the mean of this hour on earlier days; `None` before enough of them.
    pub fn expect(&self, at: EventTime) -> Option<f64> {
        let slot = slot_of(hour_of(at));
        let days = *self.days.get(slot)?;
        self.mean.get(slot).copied().filter(|_| days >= Self::DAYS_MIN)
    }

    pub fn learn(&mut self, at: EventTime, value: f64) {
        let hour = hour_of(at);
        if self.hour != Some(hour) {
            self.close();
            self.hour = Some(hour);
        }
        self.sum += value;
        self.points = self.points.saturating_add(1);
    }

    fn close(&mut self) {
        if let Some(slot) = self.hour.map(slot_of)
            && let (Some(mean), Some(days)) = (self.mean.get_mut(slot), self.days.get_mut(slot))
        {
            *days = days.saturating_add(1);
            let rate = (1.0 / f64::from(*days)).max(Self::DAY_RATE);
            *mean += rate * (self.sum / f64::from(self.points.max(1)) - *mean);
        }
        (self.sum, self.points) = (0.0, 0);
    }
}

fn hour_of(at: EventTime) -> i64 {
    at.as_micros().div_euclid(DailySlots::HOUR_MICROS)
}

fn slot_of(hour: i64) -> usize {
    hour.rem_euclid(DailySlots::SLOTS as i64) as usize
}
