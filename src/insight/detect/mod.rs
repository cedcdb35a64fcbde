//! Anomalies within one series: forecast residuals in several channels, each turned into a tail probability, and a
//! decaying inhibition after a surprise.
//!
//! One fixed configuration for every series; the constants here are the whole of it. Must never read a clock, allocate
//! per point, or learn from a point before scoring it.

mod channel;
mod predictor;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::channel::Channel;
use self::predictor::{Autoregression, DailySlots};
use super::exact;
use crate::model::time::EventTime;

/// What a detector says of one point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// What the point was expected to be, from the points before it.
    pub expected: f64,
    /// One minus the tail probability that the channels agree on, after inhibition; in [0, 1).
    pub score: f64,
    pub detected: bool,
}

/// Why a detector does not score a point.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Abstention {
    /// The point was learned, yet too few came before it.
    #[error("warming up: {have} points of the {need} needed")]
    Warming { have: u32, need: u32 },
    /// The point was not learned.
    #[error("expected a number between -{max:e} and {max:e}, got {value}", max = ResidualDetector::VALUE_MAX)]
    Unusable { value: f64 },
    /// The point was not learned.
    #[error("expected a point after {last}, got one at {at}")]
    OutOfOrder { last: EventTime, at: EventTime },
}

/// Scores the points of one series, in order of time.
///
/// O(1) per point, of fixed size (below 4 KiB), deterministic; saved and restored it continues bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResidualDetector {
    seen: u32,
    last_at: Option<EventTime>,
    /// The last points, oldest first.
    #[serde(with = "exact")]
    recent: [f64; ResidualDetector::RECENT],
    /// Exponentially weighted mean.
    #[serde(with = "exact")]
    level: f64,
    #[serde(with = "exact")]
    low: f64,
    #[serde(with = "exact")]
    high: f64,
    /// Mean absolute step from point to point.
    #[serde(with = "exact")]
    step: f64,
    /// How many points the series has stood still for, and the most it ever did before it moved again.
    still: u32,
    still_longest: u32,
    autoregression: Autoregression,
    slots: DailySlots,
    channels: Channels,
    /// The highest surprise of late, decaying: only what exceeds it counts.
    #[serde(with = "exact")]
    inhibition: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Channels {
    /// Value against the level.
    level: Channel,
    /// Mean of the last few points against the mean of those before.
    shift: Channel,
    /// Value against the same hour of earlier days.
    season: Channel,
    /// Value against the autoregression.
    next: Channel,
    /// How much the series moves, against how much it usually does.
    activity: Channel,
}

impl ResidualDetector {
    /// Values of greater magnitude are refused: their squares would leave the range of floating point.
    pub const VALUE_MAX: f64 = 1e100;
    /// Points needed before the first score.
    pub const WARM: u32 = 100;
    /// A point is detected where its evidence exceeds that of late by this many bans (a ban is a factor of ten).
    ///
    /// Not the best of a sweep over the NAB corpus, whose peak is lower, narrow and in-sample: over the wide plateau
    /// around this value the benchmark hardly changes, while false alarms on noise fall with it.
    pub const DETECT_BANS: f64 = 3.0;

    const RECENT: usize = 16;
    /// How many of the recent points make the near side of a level shift.
    const NEAR: usize = 4;
    const LEVEL_RATE: f64 = 0.02;
    const STEP_RATE: f64 = 1.0 / 400.0;
    /// A point whose evidence exceeds that of late by this many bans inhibits fully.
    const SURPRISE_BANS: f64 = 2.5;
    const INHIBITION_RISE: f64 = 0.15;
    /// A series is flat that stands still this many times longer than it ever did, and for this many points at least.
    const FLAT_TIMES: u32 = 4;
    const FLAT_POINTS_MIN: u32 = 16;
    const FLAT_BANS: f64 = 10.0;
    /// Evidence fades over this many points.
    const INHIBITION_POINTS: f64 = 500.0;
    /// Evidence beyond is not told apart; keeps the score below one and bounds how long it inhibits.
    const BANS_MAX: f64 = 15.0;
    /// A new extreme counts once the range is known from this many points.
    const RANGE_WARM: u32 = 300;
    /// Bans for a decade of range novelty, and the share of the range that makes the first octave of it.
    const NOVELTY_BANS: f64 = 14.0;
    const NOVELTY_SHARE: f64 = 0.05;
    /// How much the sum over all channels adds to the strongest: agreement is evidence, if weak.
    const AGREEMENT: f64 = 0.03;
    const LEVEL_WEIGHT: f64 = 0.5;
    const SHIFT_WEIGHT: f64 = 2.0;
    const SEASON_WEIGHT: f64 = 1.8;

    pub fn new() -> Self {
        let channel = Channel::new();
        ResidualDetector {
            seen: 0,
            last_at: None,
            recent: [0.0; Self::RECENT],
            level: 0.0,
            low: 0.0,
            high: 0.0,
            step: 0.0,
            still: 0,
            still_longest: 0,
            autoregression: Autoregression::new(),
            slots: DailySlots::new(),
            channels: Channels {
                level: channel.clone(),
                shift: channel.clone(),
                season: channel.clone(),
                next: channel.clone(),
                activity: channel,
            },
            inhibition: 0.0,
        }
    }

    /// Scores a point by those before it, then learns it.
    ///
    /// # Errors
    /// An [`Abstention`] where there is no score; all but `Warming` leave the detector as it was.
    pub fn update(&mut self, at: EventTime, value: f64) -> Result<Score, Abstention> {
        if value.is_nan() || value.abs() > Self::VALUE_MAX {
            return Err(Abstention::Unusable { value });
        }
        if let Some(last) = self.last_at.filter(|last| at <= *last) {
            return Err(Abstention::OutOfOrder { last, at });
        }
        if self.last_at.is_none() {
            self.recent = [value; Self::RECENT];
            (self.level, self.low, self.high) = (value, value, value);
        }
        let expected = self.expected(at);
        let bans = self.evidence(at, value);
        let effective = (bans - self.inhibition).max(0.0);
        self.inhibit(bans, effective);
        self.learn(at, value);
        if self.seen <= Self::WARM {
            return Err(Abstention::Warming { have: self.seen, need: Self::WARM });
        }
        Ok(Score { expected, score: 1.0 - 10f64.powf(-effective), detected: effective > Self::DETECT_BANS })
    }

    /// Lets the evidence of one point weigh against that of the next ones.
    ///
    /// A surprise silences its like at once, lesser ones only bit by bit: were every rise matched at once, evidence that
    /// grows step by step, as of a line going flat, would never stand out.
    fn inhibit(&mut self, bans: f64, effective: f64) {
        self.inhibition *= 1.0 - 1.0 / Self::INHIBITION_POINTS;
        if effective > Self::SURPRISE_BANS {
            self.inhibition = bans;
        } else if bans > self.inhibition {
            self.inhibition += Self::INHIBITION_RISE * (bans - self.inhibition);
        }
    }

    /// Returns the prediction of the better of two predictors, by their mean absolute errors so far.
    fn expected(&self, at: EventTime) -> f64 {
        let next = self.autoregression.predict(self.last_three());
        let season = &self.channels.season;
        match self.slots.expect(at) {
            Some(mean) if season.seen() >= Self::WARM && season.scale() < self.channels.next.scale() => mean,
            _ => next,
        }
    }

    /// Returns the evidence against the point, in bans, and lets the channels learn it.
    fn evidence(&mut self, at: EventTime, value: f64) -> f64 {
        let floor = self.floor(value);
        let next = self.autoregression.predict(self.last_three());
        let activity = self.activity(value, floor);
        let shift = self.shift();
        let channels = &mut self.channels;
        let season = match self.slots.expect(at) {
            Some(mean) => channels.season.score(value - mean, floor),
            None => 0.0,
        };
        let surprises = [
            Self::LEVEL_WEIGHT * channels.level.score(value - self.level, floor),
            Self::SHIFT_WEIGHT * channels.shift.score(shift, floor),
            Self::SEASON_WEIGHT * season,
            channels.next.score(value - next, floor),
            channels.activity.score(activity, 0.1),
        ];
        let strongest = surprises.iter().fold(0.0, |most: f64, bans| most.max(*bans));
        let agreement = Self::AGREEMENT * surprises.iter().sum::<f64>();
        (strongest + agreement + self.novelty(value, floor) + self.flatness(value, floor)).min(Self::BANS_MAX)
    }

    /// Returns the smallest deviation that means anything: a thousandth of the range, and never below rounding error.
    fn floor(&self, value: f64) -> f64 {
        1e-3 * (self.high - self.low) + 1e-9 * value.abs()
    }

    fn shift(&self) -> f64 {
        let (far, near) = self.recent.split_at(Self::RECENT - Self::NEAR);
        near.iter().sum::<f64>() / near.len() as f64 - far.iter().sum::<f64>() / far.len() as f64
    }

    /// Returns the logarithm of the mean absolute step over the recent points relative to the usual one.
    fn activity(&self, value: f64, floor: f64) -> f64 {
        let steps: f64 = self.recent.iter().zip(self.recent.iter().skip(1)).map(|(a, b)| (b - a).abs()).sum();
        let [last, ..] = self.last_three();
        let usual = self.step.max(floor);
        let mean = (steps + (value - last).abs()) / Self::RECENT as f64;
        if usual > 0.0 { (mean / usual).clamp(1e-3, 1e3).ln() } else { 0.0 }
    }

    /// Returns the bans for leaving the range of everything seen.
    fn novelty(&self, value: f64, floor: f64) -> f64 {
        if self.seen <= Self::RANGE_WARM {
            return 0.0;
        }
        let beyond = (value - self.high).max(self.low - value).max(0.0);
        let range = (self.high - self.low).max(floor);
        if range > 0.0 { Self::NOVELTY_BANS * (1.0 + beyond / (Self::NOVELTY_SHARE * range)).log10() } else { 0.0 }
    }

    /// Returns the bans for a line that goes flat, at the point that makes it so.
    fn flatness(&mut self, value: f64, floor: f64) -> f64 {
        let [last, ..] = self.last_three();
        if (value - last).abs() > floor {
            self.still_longest = self.still_longest.max(self.still);
            self.still = 0;
            return 0.0;
        }
        self.still = self.still.saturating_add(1);
        let flat = self.still_longest.saturating_mul(Self::FLAT_TIMES).max(Self::FLAT_POINTS_MIN);
        // What has never moved is constant, not flat.
        let moved = self.high > self.low;
        if moved && self.still == flat { Self::FLAT_BANS } else { 0.0 }
    }

    fn last_three(&self) -> [f64; 3] {
        let [.., third, second, last] = self.recent;
        [last, second, third]
    }

    fn learn(&mut self, at: EventTime, value: f64) {
        self.seen = self.seen.saturating_add(1);
        self.last_at = Some(at);
        let last = self.last_three();
        let first_rate = 1.0 / f64::from(self.seen);
        self.step += first_rate.max(Self::STEP_RATE) * ((value - last[0]).abs().min(self.step_max()) - self.step);
        self.level += first_rate.max(Self::LEVEL_RATE) * (value - self.level);
        (self.low, self.high) = (self.low.min(value), self.high.max(value));
        self.autoregression.learn(last, value);
        self.slots.learn(at, value);
        self.recent.rotate_left(1);
        if let Some(newest) = self.recent.last_mut() {
            *newest = value;
        }
    }

    /// Returns the largest step that counts, so that one jump does not make the series look restless for long.
    fn step_max(&self) -> f64 {
        if self.seen > 16 && self.step > 0.0 { 4.0 * self.step } else { f64::MAX }
    }
}

impl Default for ResidualDetector {
    fn default() -> Self {
        ResidualDetector::new()
    }
}
