//! Outliers between series: members of a group (such as the replicas of one service) that stand apart from their peers.
//!
//! Each window's points are scaled robustly and clustered with DBSCAN; what lies outside the cluster that holds the
//! majority stands out, and what stands out in enough of the last windows is detected. Must never compare a member with
//! its own past: that is `detect`'s part.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use linfa::traits::Transformer;
use linfa_clustering::Dbscan;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::model::time::EventTime;

/// What a group says of one member in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberScore {
    pub member: String,
    pub value: f64,
    /// Of all members.
    pub median: f64,
    /// One minus an upper bound of the tail probability of the distance to the median; in [0, 1).
    pub score: f64,
    /// Stands out now, and in enough of the last windows.
    pub detected: bool,
}

/// Why a group is not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Abstention {
    #[error("expected at least {need} members with a finite value to compare, got {have}")]
    TooFew { have: usize, need: usize },
    #[error("expected at most {max} members, got {have}; group by more columns")]
    TooMany { have: usize, max: usize },
    #[error("expected a window after {last}, got one at {at}")]
    OutOfOrder { last: EventTime, at: EventTime },
}

/// In how many of how many windows a member must stand out to be detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    min: u32,
    of: u32,
}

impl Persistence {
    /// Windows are remembered as bits of one word.
    pub const WINDOWS_MAX: u32 = u64::BITS;

    /// Makes "`min` of the last `of` windows"; `None` unless 1 <= min <= of <= [`Persistence::WINDOWS_MAX`].
    pub fn try_new(min: u32, of: u32) -> Option<Self> {
        (1 <= min && min <= of && of <= Self::WINDOWS_MAX).then_some(Persistence { min, of })
    }

    fn mask(self) -> u64 {
        u64::MAX >> (u64::BITS - self.of)
    }
}

impl Default for Persistence {
    fn default() -> Self {
        Persistence { min: 3, of: 5 }
    }
}

/// One group of members, compared window by window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupOutlier {
    persistence: Persistence,
    last_at: Option<EventTime>,
    members: BTreeMap<String, Past>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Past {
    /// One bit per window in which the member was seen, the newest lowest: did it stand out?
    stood_out: u64,
    /// Windows since it was last seen.
    absent: u32,
}

impl GroupOutlier {
    /// Fewer cannot have a majority that one of them differs from.
    pub const MEMBERS_MIN: usize = 3;
    /// Clustering compares every pair.
    pub const MEMBERS_MAX: usize = 1000;

    pub fn new(persistence: Persistence) -> Self {
        GroupOutlier { persistence, last_at: None, members: BTreeMap::new() }
    }

    /// Judges the members of one window against each other, in the order given. Values that are not finite are left out;
    /// a member without a value in a window is neither in nor out in it, and is forgotten after as many windows as count.
    pub fn update(&mut self, at: EventTime, window: &[(&str, f64)]) -> Result<Vec<MemberScore>, Abstention> {
        if let Some(last) = self.last_at.filter(|last| at <= *last) {
            return Err(Abstention::OutOfOrder { last, at });
        }
        if window.len() > Self::MEMBERS_MAX {
            return Err(Abstention::TooMany { have: window.len(), max: Self::MEMBERS_MAX });
        }
        let present: Vec<(&str, f64)> = window.iter().copied().filter(|(_, value)| value.is_finite()).collect();
        if present.len() < Self::MEMBERS_MIN {
            return Err(Abstention::TooFew { have: present.len(), need: Self::MEMBERS_MIN });
        }
        self.last_at = Some(at);
        let values: Vec<f64> = present.iter().map(|(_, value)| *value).collect();
        let centre = median(values.clone());
        let apart = apart(&[values]);
        self.age();
        let scores = present
            .iter()
            .zip(apart)
            .map(|(&(member, value), apart)| MemberScore {
                member: member.to_owned(),
                value,
                median: centre,
                score: apart.score(),
                detected: self.remember(member, apart.stands_out),
            })
            .collect();
        Ok(scores)
    }

    /// Counts one window of absence for all; those present take it back.
    fn age(&mut self) {
        let windows = self.persistence.of;
        self.members.values_mut().for_each(|past| past.absent += 1);
        self.members.retain(|_, past| past.absent <= windows);
    }

    fn remember(&mut self, member: &str, stands_out: bool) -> bool {
        let past = self.members.entry(member.to_owned()).or_default();
        past.absent = 0;
        past.stood_out = ((past.stood_out << 1) | u64::from(stands_out)) & self.persistence.mask();
        stands_out && past.stood_out.count_ones() >= self.persistence.min
    }
}

/// How one point relates to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Apart {
    /// Distance to the centre, in robust standard deviations.
    distance: f64,
    stands_out: bool,
}

impl Apart {
    /// One minus the Vysochanskij–Petunin bound 4/(9 z²) on the tail of any unimodal distribution, so that no normality
    /// is assumed. Rounded down to below one.
    fn score(self) -> f64 {
        (1.0 - 4.0 / (9.0 * self.distance * self.distance)).clamp(0.0, 1.0 - 1e-12)
    }
}

/// Points closer than this many robust standard deviations belong together.
const TOLERANCE: f64 = 3.0;
/// Members within this share of the median are peers, however closely the others agree: a handful of replicas often
/// agree by chance to a few percent, and nobody acts on a tenth.
const PEERS_WITHIN: f64 = 0.2;
/// From the median absolute deviation to the standard deviation of a normal distribution.
const MAD_TO_SIGMA: f64 = 1.4826;

/// Returns, for every point, how it relates to the others. `columns` are the coordinates, one column per measure, all
/// of the same length. A point stands out where DBSCAN puts it outside every cluster, a cluster's core being a point
/// with more than half of all points within [`TOLERANCE`]: so there is one cluster at most, that of the majority.
fn apart(columns: &[Vec<f64>]) -> Vec<Apart> {
    let rows = columns.first().map_or(0, Vec::len);
    let scaled: Vec<Vec<f64>> = columns.iter().map(|column| scale(column)).collect();
    let at = |row: usize, column: usize| scaled.get(column).and_then(|c| c.get(row)).copied().unwrap_or(0.0);
    let points = Array2::from_shape_fn((rows, columns.len()), |(row, column)| at(row, column));
    let majority = rows / 2 + 1;
    let clusters = Dbscan::params::<f64>(majority.max(2)).tolerance(TOLERANCE).transform(&points);
    let clusters = clusters.expect("the tolerance is positive and at least two points make a cluster");
    // Where no cluster forms there is no majority to stand apart from.
    let any = clusters.iter().any(Option::is_some);
    points
        .rows()
        .into_iter()
        .zip(&clusters)
        .map(|(point, cluster)| Apart {
            distance: point.iter().map(|x| x * x).sum::<f64>().sqrt(),
            stands_out: any && cluster.is_none(),
        })
        .collect()
}

/// Centres a column on its median and scales it by its median absolute deviation. Bounded, so that squares stay finite.
fn scale(column: &[f64]) -> Vec<f64> {
    const BOUND: f64 = 1e9;
    let centre = median(column.to_vec());
    let spread = MAD_TO_SIGMA * median(column.iter().map(|value| (value - centre).abs()).collect());
    let unit = spread.max(PEERS_WITHIN / TOLERANCE * centre.abs()).max(f64::MIN_POSITIVE);
    column.iter().map(|value| ((value - centre) / unit).clamp(-BOUND, BOUND)).collect()
}

/// Returns the median, the mean of the two in the middle where there are two; zero of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1).and_then(|below| values.get(below))) {
        (Some(&high), Some(&low)) if values.len().is_multiple_of(2) => low / 2.0 + high / 2.0,
        (Some(&high), _) => high,
        (None, _) => 0.0,
    }
}
