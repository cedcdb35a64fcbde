//! The last points of one series, one per step without gaps: short ones are filled with the last value, a long one makes
//! the history begin anew. Never holds more than its bound.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Abstention, Forecaster};
use crate::insight::exact;
use crate::model::time::{EventTime, micros};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    step_micros: i64,
    points_max: usize,
    #[serde(with = "exact")]
    values: VecDeque<f64>,
    /// Index of the last step: its start divided by the step.
    last: i64,
    /// How far into its step the last point was, in microseconds: windows need not be aligned to the epoch.
    phase: i64,
    /// Steps missing before the first point, where the history began anew.
    gap: Option<usize>,
}

impl History {
    pub fn new(step: Duration, points_max: usize) -> Self {
        History { step_micros: micros(step).max(1), points_max, values: VecDeque::new(), last: 0, phase: 0, gap: None }
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns how many steps were missing where the history began anew; `None` where it never did.
    pub fn gap(&self) -> Option<usize> {
        self.gap
    }

    pub fn last(&self) -> Option<f64> {
        self.values.back().copied()
    }

    pub fn last_index(&self) -> i64 {
        self.last
    }

    pub fn values(&self) -> Vec<f64> {
        self.values.iter().copied().collect()
    }

    /// Returns the time of the point of a step.
    pub fn time_of(&self, index: i64) -> EventTime {
        EventTime::from_micros(index.saturating_mul(self.step_micros).saturating_add(self.phase))
    }

    /// Appends the value of the step that holds `at`. Returns the number of steps that came with it, itself included;
    /// `None` where the history began with it.
    pub fn push(&mut self, at: EventTime, value: f64) -> Result<Option<usize>, Abstention> {
        let index = at.as_micros().div_euclid(self.step_micros);
        let phase = at.as_micros().rem_euclid(self.step_micros);
        let Some(last) = self.last() else {
            self.values.push_back(value);
            (self.last, self.phase) = (index, phase);
            return Ok(None);
        };
        if index <= self.last {
            return Err(Abstention::OutOfOrder { last: self.time_of(self.last), at });
        }
        let steps = usize::try_from(index.saturating_sub(self.last)).unwrap_or(usize::MAX);
        (self.last, self.phase) = (index, phase);
        if steps - 1 > Forecaster::GAP_MAX {
            self.values.clear();
            self.values.push_back(value);
            self.gap = Some(steps - 1);
            return Ok(None);
        }
        self.values.extend(std::iter::repeat_n(last, steps - 1));
        self.values.push_back(value);
        let excess = self.values.len().saturating_sub(self.points_max);
        self.values.drain(..excess);
        Ok(Some(steps))
    }

    /// Returns how many steps lie between the last known one and the one that holds `at`.
    pub fn steps_behind(&self, at: EventTime) -> Result<usize, Abstention> {
        let index = at.as_micros().div_euclid(self.step_micros);
        usize::try_from(index.saturating_sub(self.last))
            .map_err(|_| Abstention::OutOfOrder { last: self.time_of(self.last), at })
    }

    /// Returns the unit in which errors are compared over time: the mean absolute error of the seasonal naive forecast
    /// (of the last value, without a season) over the last two seasons' worth of points. Always positive.
    pub fn unit(&self, season: Option<usize>) -> f64 {
        const WINDOW: usize = 64;
        let lag = season.filter(|season| self.len() > 2 * season).unwrap_or(1);
        let errors =
            self.values.iter().rev().zip(self.values.iter().rev().skip(lag)).map(|(now, then)| (now - then).abs());
        let (count, sum) = errors.take(WINDOW.max(2 * lag)).fold((0usize, 0.0), |(n, sum), error| (n + 1, sum + error));
        let magnitude = self.last().unwrap_or(0.0).abs();
        // A constant series has no errors; a millionth of its value keeps the unit positive and the quotients finite.
        (sum / count.max(1) as f64).max(1e-6 * magnitude).max(1e-100)
    }
}
