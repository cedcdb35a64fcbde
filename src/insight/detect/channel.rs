//! One channel of a detector: residuals of one kind, their robust scale and their tail.
//!
//! Knows nothing of the series, of time, nor of other channels; must never allocate.

use serde::{Deserialize, Serialize};

use crate::insight::exact;

/// Residuals of one kind. Scores a residual by what it learned from those before it, then learns it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    /// Mean absolute residual, exponentially weighted, winsorised: the robust scale.
    #[serde(with = "exact")]
    scale: f64,
    seen: u32,
    tail: Tail,
}

impl Channel {
    /// The scale forgets over about this many residuals.
    const MEMORY: f64 = 400.0;
    /// Before so many residuals the scale means nothing, and what is scaled by it would spoil the tail.
    const SCALE_WARM: u32 = 25;
    /// Before so many residuals the tail means nothing, and nothing is a surprise.
    const TAIL_WARM: u32 = 50;
    /// A residual counts for at most this many scales, so that one spike cannot blind the channel.
    const WINSOR: f64 = 4.0;

    pub fn new() -> Self {
        Channel { scale: 0.0, seen: 0, tail: Tail::new() }
    }

    /// Returns how many residuals were learned.
    pub fn seen(&self) -> u32 {
        self.seen
    }

    /// Returns the mean absolute residual.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns how surprising the residual is, in bans: minus the decimal logarithm of the probability of one at least
    /// as large. Learns it afterwards. `floor` is the smallest scale that means anything, in the residual's unit.
    pub fn score(&mut self, residual: f64, floor: f64) -> f64 {
        let size = residual.abs();
        let scale = self.scale.max(floor);
        let z = if scale > 0.0 { (size / scale).min(Tail::Z_MAX) } else { 0.0 };
        let surprise = if self.seen >= Self::TAIL_WARM { self.tail.surprise(z) } else { 0.0 };
        if self.seen >= Self::SCALE_WARM {
            self.tail.learn(z);
        }
        self.learn_scale(size, floor);
        surprise
    }

    fn learn_scale(&mut self, size: f64, floor: f64) {
        self.seen = self.seen.saturating_add(1);
        let rate = (1.0 / f64::from(self.seen)).max(1.0 / Self::MEMORY);
        let cap = if self.seen > 16 { Self::WINSOR * self.scale.max(floor) } else { f64::MAX };
        self.scale += rate * (size.min(cap) - self.scale);
    }
}

/// How often residuals of each size came: a histogram over the logarithm of the scaled residual, forgetting slowly,
/// with a heavy-tailed prior that extrapolates beyond what was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tail {
    #[serde(with = "exact")]
    bins: [f32; Tail::BINS],
    #[serde(with = "exact")]
    total: f32,
    /// The weight of the next residual. Grows instead of the bins shrinking, which keeps learning O(1).
    #[serde(with = "exact")]
    weight: f32,
}

impl Tail {
    const BINS: usize = 32;
    const PER_OCTAVE: f64 = 3.0;
    /// Lower edge of the second bin, as a power of two; the first holds everything below.
    const FIRST_OCTAVE: f64 = -3.0;
    /// Scaled residuals beyond are taken as this large.
    const Z_MAX: f64 = 1e6;
    /// What the prior counts for, in residuals.
    const PRIOR: f64 = 2.0;
    /// Exponent of the prior's tail, P(Z > z) = (1 + z)^-EXPONENT.
    const EXPONENT: f64 = 3.0;
    const MEMORY: f32 = 8000.0;
    const WEIGHT_MAX: f32 = 1e6;

    fn new() -> Self {
        Tail { bins: [0.0; Tail::BINS], total: 0.0, weight: 1.0 }
    }

    fn position(z: f64) -> f64 {
        ((z.max(1e-9).log2() - Self::FIRST_OCTAVE) * Self::PER_OCTAVE).clamp(0.0, Self::BINS as f64 - 1.0)
    }

    fn surprise(&self, z: f64) -> f64 {
        let position = Self::position(z);
        let bin = position as usize;
        let within: f32 = self.bins.get(bin).copied().unwrap_or(0.0);
        let above: f32 = self.bins.iter().skip(bin + 1).sum();
        // Residuals of the same bin count by the share of the bin that lies above this one.
        let share = 1.0 - (position - bin as f64);
        let seen = f64::from(above) + f64::from(within) * share;
        let unit = f64::from(self.weight);
        let prior = (1.0 + z).powf(-Self::EXPONENT);
        let p = (seen / unit + Self::PRIOR * prior) / (f64::from(self.total) / unit + Self::PRIOR);
        -p.clamp(1e-300, 1.0).log10()
    }

    fn learn(&mut self, z: f64) {
        if let Some(bin) = self.bins.get_mut(Self::position(z) as usize) {
            *bin += self.weight;
            self.total += self.weight;
        }
        self.weight *= 1.0 + 1.0 / Self::MEMORY;
        if self.weight > Self::WEIGHT_MAX {
            self.bins.iter_mut().for_each(|bin| *bin /= self.weight);
            self.total /= self.weight;
            self.weight = 1.0;
        }
    }
}
