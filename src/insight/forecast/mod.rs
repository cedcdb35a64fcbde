//! Forecasts of one series on a regular step, with prediction intervals that are calibrated on its own past errors.
//!
//! A model is fitted to the history every so often; between fits its path is followed and corrected by the last error.
//! Deterministic; what is saved continues bit for bit (fitted models themselves are not kept, only their path). Must
//! never use a value later than the moment a forecast is issued.

pub mod backtest;
mod conformal;
mod fit;
mod history;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::conformal::Calibration;
use self::fit::Path;
use self::history::History;
use super::exact;
use crate::model::time::EventTime;

/// What a forecaster is to do, checked when made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    step: Duration,
    season: Option<usize>,
    horizon: usize,
    #[serde(with = "exact")]
    level: f64,
    history_max: usize,
    refit_every: usize,
}

/// What was asked of a forecaster, unchecked; see [`Settings::try_new`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// Distance between two points.
    pub step: Duration,
    /// Length of a season, in steps.
    pub season: Option<usize>,
    /// How many steps to look ahead.
    pub horizon: usize,
    /// Nominal coverage of the intervals, in (0, 1).
    pub level: f64,
    /// How many of the last points to fit to.
    pub history_max: usize,
    /// A model is fitted anew after this many points.
    pub refit_every: usize,
}

/// Which part of a [`Request`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    #[error("expected a step of at least a microsecond, got none")]
    Step,
    #[error("expected a season of 2 to {max} steps, got {got}; use a longer window or a shorter season")]
    Season { got: usize, max: usize },
    #[error("expected a horizon of 1 to {max} steps, got {got}; use a longer window or a shorter horizon")]
    Horizon { got: usize, max: usize },
    #[error("expected a level above 0 and below 1, such as 0.95, got {got}")]
    Level { got: f64 },
    #[error("expected a history of {min} to {max} points, got {got}")]
    History { got: usize, min: usize, max: usize },
    #[error("expected a fit every 1 to {max} points, got {got}")]
    Refit { got: usize, max: usize },
}

/// One moment of a forecast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub target_time: EventTime,
    pub yhat: f64,
    pub yhat_lower: f64,
    pub yhat_upper: f64,
}

/// Why there is no forecast, or why a value was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Abstention {
    #[error("history is short: {have} points of the {need} needed")]
    ShortHistory { have: usize, need: usize },
    #[error("nothing is known of the last {missing} steps, at most {max} are filled")]
    Gap { missing: usize, max: usize },
    #[error("no model gave finite numbers for a history of {points} points")]
    FitFailed { points: usize },
    #[error("expected a number between -{max:e} and {max:e}, got {value}", max = Forecaster::VALUE_MAX)]
    Unusable { value: f64 },
    #[error("expected a step after {last}, got one at {at}")]
    OutOfOrder { last: EventTime, at: EventTime },
}

/// Forecasts one series. Bounded by its [`Settings`], whatever it is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecaster {
    settings: Settings,
    history: History,
    path: Option<Path>,
    /// Points seen since the path was fitted.
    age: usize,
    calibration: Calibration,
    /// Forecasts that wait for their truth, oldest first.
    pending: VecDeque<Issued>,
}

/// A forecast that was issued, until all its moments have come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Issued {
    /// Index of the last step known when it was issued.
    origin: i64,
    #[serde(with = "exact")]
    yhat: Vec<f64>,
    /// Half-widths below and above that were given out.
    #[serde(with = "exact")]
    below: Vec<f64>,
    #[serde(with = "exact")]
    above: Vec<f64>,
    /// The unit of the errors when it was issued.
    #[serde(with = "exact")]
    unit: f64,
}

impl Settings {
    pub const HORIZON_MAX: usize = 2_000;
    pub const HISTORY_MAX: usize = 20_000;

    /// Checks a request.
    pub fn try_new(request: Request) -> Result<Self, SettingsError> {
        let Request { step, season, horizon, level, history_max, refit_every } = request;
        let season_max = history_max / 2;
        if step < Duration::from_micros(1) {
            return Err(SettingsError::Step);
        }
        if let Some(got) = season.filter(|season| !(2..=season_max).contains(season)) {
            return Err(SettingsError::Season { got, max: season_max });
        }
        if !(1..=Self::HORIZON_MAX).contains(&horizon) {
            return Err(SettingsError::Horizon { got: horizon, max: Self::HORIZON_MAX });
        }
        if !(0.0 < level && level < 1.0) {
            return Err(SettingsError::Level { got: level });
        }
        if !(Forecaster::POINTS_MIN..=Self::HISTORY_MAX).contains(&history_max) {
            let (min, max) = (Forecaster::POINTS_MIN, Self::HISTORY_MAX);
            return Err(SettingsError::History { got: history_max, min, max });
        }
        if !(1..=Self::HORIZON_MAX).contains(&refit_every) {
            return Err(SettingsError::Refit { got: refit_every, max: Self::HORIZON_MAX });
        }
        Ok(Settings { step, season, horizon, level, history_max, refit_every })
    }

    pub fn step(&self) -> Duration {
        self.step
    }

    pub fn horizon(&self) -> usize {
        self.horizon
    }

    pub fn level(&self) -> f64 {
        self.level
    }
}

impl Forecaster {
    /// Values of greater magnitude are refused: their squares would leave the range of floating point.
    pub const VALUE_MAX: f64 = 1e100;
    /// Points needed before the first forecast; the model with most parameters needs nearly as many.
    pub const POINTS_MIN: usize = 16;
    /// So many missing steps in a row are filled with the last value; more, and the history begins anew.
    pub const GAP_MAX: usize = 5;

    /// So many forecasts are followed up at a time: with a long horizon not every one.
    const PENDING_MAX: usize = 32;
    /// How much of the last error is still there one step further.
    const ERROR_KEPT: f64 = 0.8;

    pub fn new(settings: Settings) -> Self {
        Forecaster {
            settings,
            history: History::new(settings.step, settings.history_max),
            path: None,
            age: 0,
            calibration: Calibration::new(settings.horizon, settings.level),
            pending: VecDeque::new(),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the name of the model behind the last forecast; `None` before the first.
    pub fn model(&self) -> Option<&'static str> {
        self.path.as_ref().map(|path| path.model.as_str())
    }

    /// Takes in the value of the step that holds `at`, and compares it with what was forecast of it.
    ///
    /// # Errors
    /// `Unusable` and `OutOfOrder`; the forecaster is then as it was.
    pub fn observe(&mut self, at: EventTime, value: f64) -> Result<(), Abstention> {
        if value.is_nan() || value.abs() > Self::VALUE_MAX {
            return Err(Abstention::Unusable { value });
        }
        let filled = self.history.push(at, value)?;
        if let Some(steps) = filled {
            self.age = self.age.saturating_add(steps);
        } else {
            self.path = None;
            self.pending.clear();
        }
        self.learn(value);
        Ok(())
    }

    /// Forecasts the steps after the one that holds `at`, by what is known at `at`.
    ///
    /// # Errors
    /// An [`Abstention`] with the reason why there is no forecast.
    pub fn issue(&mut self, at: EventTime) -> Result<Vec<Point>, Abstention> {
        let known = self.history.len();
        if known < Self::POINTS_MIN {
            return Err(match self.history.gap() {
                Some(missing) => Abstention::Gap { missing, max: Self::GAP_MAX },
                None => Abstention::ShortHistory { have: known, need: Self::POINTS_MIN },
            });
        }
        let behind = self.history.steps_behind(at)?;
        if behind > Self::GAP_MAX {
            return Err(Abstention::Gap { missing: behind, max: Self::GAP_MAX });
        }
        self.refit()?;
        let issued = self.draw(behind).ok_or(Abstention::FitFailed { points: known })?;
        let points = self.points(&issued, behind);
        self.follow(issued);
        Ok(points)
    }

    /// Fits anew where there is no path, or it is older than the settings allow.
    fn refit(&mut self) -> Result<(), Abstention> {
        if self.path.is_some() && self.age < self.settings.refit_every {
            return Ok(());
        }
        let history = self.history.values();
        let steps = self.settings.horizon + self.settings.refit_every + Self::GAP_MAX;
        let path = fit::fit(&history, self.settings.season, steps, self.settings.level);
        self.path = Some(path.ok_or(Abstention::FitFailed { points: history.len() })?);
        self.age = 0;
        Ok(())
    }

    /// Draws the forecast from the path: the rest of it from now on, moved by the last error, which fades.
    fn draw(&self, behind: usize) -> Option<Issued> {
        let path = self.path.as_ref()?;
        let last_error = match self.age.checked_sub(1) {
            Some(previous) => self.history.last()? - path.yhat.get(previous)?,
            None => 0.0,
        };
        let unit = self.history.unit(self.settings.season);
        let calibrated = self.calibration.half_widths(unit);
        let (mut yhat, mut below, mut above) = (Vec::new(), Vec::new(), Vec::new());
        for ahead in 1..=self.settings.horizon + behind {
            let fade = Self::ERROR_KEPT.powi(i32::try_from(ahead).unwrap_or(i32::MAX));
            yhat.push(path.yhat.get(self.age + ahead - 1)? + last_error * fade);
            let model = *path.half_width.get(ahead - 1)?;
            let (low, high) = calibrated.at(ahead).unwrap_or((model, model));
            below.push(low);
            above.push(high);
        }
        let finite = [&yhat, &below, &above].into_iter().flatten().all(|number| number.is_finite());
        finite.then_some(Issued { origin: self.history.last_index(), yhat, below, above, unit })
    }

    fn points(&self, issued: &Issued, behind: usize) -> Vec<Point> {
        let moments = issued.yhat.iter().zip(&issued.below).zip(&issued.above).enumerate().skip(behind);
        moments
            .map(|(position, ((&yhat, below), above))| Point {
                target_time: self.history.time_of(issued.origin + position as i64 + 1),
                yhat,
                yhat_lower: yhat - below,
                yhat_upper: yhat + above,
            })
            .collect()
    }

    /// Keeps a forecast until its truth is known, unless one issued shortly before is kept already.
    fn follow(&mut self, issued: Issued) {
        let apart = self.settings.horizon.div_ceil(Self::PENDING_MAX) as i64;
        if self.pending.back().is_some_and(|last| issued.origin - last.origin < apart) {
            return;
        }
        if self.pending.len() >= Self::PENDING_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back(issued);
    }

    /// Learns the errors of the forecasts that were made of the newest step.
    fn learn(&mut self, value: f64) {
        let now = self.history.last_index();
        for issued in &self.pending {
            let Ok(ahead) = usize::try_from(now - issued.origin) else { continue };
            let Some(position) = ahead.checked_sub(1).filter(|_| ahead <= self.settings.horizon) else { continue };
            let parts = (issued.yhat.get(position), issued.below.get(position), issued.above.get(position));
            if let (Some(yhat), Some(below), Some(above)) = parts {
                let error = value - yhat;
                self.calibration.learn(ahead, error / issued.unit, -below <= error && error <= *above);
            }
        }
        let horizon = self.settings.horizon as i64;
        self.pending.retain(|issued| now - issued.origin < horizon);
    }
}
