//! Series: a metric name with labels, interned once and then carried as a small number.

use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The name of a series across instances and restarts: a 64-bit hash of its name and sorted labels, stored as `long`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesId(pub i64);

/// The number of a series inside this process: dense, from zero, in order of first sight. Never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesRef(pub u32);

/// What kind of number a series carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    #[default]
    Gauge,
    /// Cumulative, never falling but for resets.
    Counter,
    /// Increase since the previous point.
    Delta,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Delta => "delta",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Kind::Gauge, Kind::Counter, Kind::Delta].into_iter().find(|k| k.as_str() == text)
    }
}

/// A series and its labels, sorted by label name, names unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    pub id: SeriesId,
    pub name: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub kind: Kind,
    pub unit: Box<str>,
}

impl Series {
    pub fn label(&self, name: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        self.labels.get(at).map(|(_, value)| &**value)
    }
}

/// What a decoder knows of a series before it is interned. Labels in any order.
#[derive(Clone, Debug, Default)]
pub struct Descriptor<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, &'a str)>,
    pub kind: Kind,
    pub unit: &'a str,
}

/// Why a series was not interned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InternError {
    #[error("the limit of {max} series is reached; raise limits.series_max or drop a label")]
    Full { max: usize },
    #[error("metric name is empty")]
    EmptyName,
    #[error("label {name:?} appears twice with different values")]
    DuplicateLabel { name: String },
    #[error("series id collides with that of {other:?}")]
    Collision { other: String },
}

/// Gives every distinct (name, labels) one dense number, and keeps what it stands for.
///
/// Two lookups: by the descriptor itself, and by a decoder's *memo*, a 128-bit hash of the raw bytes that spelled the
/// series, which spares parsing and sorting the labels of a record whose spelling was seen before.
#[derive(Debug)]
pub struct Interner {
    series: Vec<Arc<Series>>,
    by_id: HashMap<SeriesId, SeriesRef>,
    memo: HashMap<u128, SeriesRef>,
    series_max: usize,
}

impl Interner {
    /// The memo holds this many spellings for each series allowed before it is dropped and learnt anew, so that a
    /// producer which shuffles its labels cannot grow it without end.
    const SPELLINGS_PER_SERIES_MAX: usize = 4;

    pub fn new(series_max: usize) -> Self {
        Interner { series: Vec::new(), by_id: HashMap::new(), memo: HashMap::new(), series_max }
    }

    pub fn len(&self) -> usize {
        self.series.len()
    }

    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    pub fn get(&self, at: SeriesRef) -> Option<&Arc<Series>> {
        self.series.get(at.0 as usize)
    }

    /// Returns all series, indexed by [`SeriesRef`].
    pub fn all(&self) -> &[Arc<Series>] {
        &self.series
    }

    pub fn find(&self, id: SeriesId) -> Option<SeriesRef> {
        self.by_id.get(&id).copied()
    }

    /// Returns the hash of the raw bytes that spell a series, to be used with [`Interner::recall`].
    pub fn spelling<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u128 {
        let mut hash = Xxh3::new();
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.digest128()
    }

    /// Returns the hash of one run of raw bytes that spell a series; a cheaper [`Interner::spelling`].
    pub fn spelling_of(bytes: &[u8]) -> u128 {
        xxh3_128(bytes)
    }

    /// Returns the series that was remembered under this spelling.
    pub fn recall(&self, spelling: u128) -> Option<SeriesRef> {
        self.memo.get(&spelling).copied()
    }

    /// Remembers that this spelling means that series.
    pub fn remember(&mut self, spelling: u128, series: SeriesRef) {
        if self.memo.len() >= self.series_max.saturating_mul(Self::SPELLINGS_PER_SERIES_MAX) {
            self.memo.clear();
        }
        self.memo.insert(spelling, series);
    }

    /// Returns the number of the series described, giving it the next one where it is new.
    pub fn intern(&mut self, descriptor: &mut Descriptor<'_>) -> Result<SeriesRef, InternError> {
        let series = build(descriptor)?;
        if let Some(&known) = self.by_id.get(&series.id) {
            let other = &self.series[known.0 as usize];
            if other.name != series.name || other.labels != series.labels {
                return Err(InternError::Collision { other: other.name.to_string() });
            }
            return Ok(known);
        }
        self.add(series)
    }

    /// Takes in a series read back from the store, outside the limit: what was accepted once stays accepted.
    pub fn restore(&mut self, series: Series) -> SeriesRef {
        if let Some(&known) = self.by_id.get(&series.id) {
            return known;
        }
        self.push(series)
    }

    fn add(&mut self, series: Series) -> Result<SeriesRef, InternError> {
        if self.series.len() >= self.series_max {
            return Err(InternError::Full { max: self.series_max });
        }
        Ok(self.push(series))
    }

    fn push(&mut self, series: Series) -> SeriesRef {
        let next = SeriesRef(u32::try_from(self.series.len()).expect("the limit on series is far below u32::MAX"));
        self.by_id.insert(series.id, next);
        self.series.push(Arc::new(series));
        next
    }
}

fn build(descriptor: &mut Descriptor<'_>) -> Result<Series, InternError> {
    if descriptor.name.is_empty() {
        return Err(InternError::EmptyName);
    }
    descriptor.labels.sort_unstable();
    descriptor.labels.dedup();
    if let Some(pair) = descriptor.labels.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(InternError::DuplicateLabel { name: pair[0].0.to_owned() });
    }
    Ok(Series {
        id: id_of(descriptor.name, &descriptor.labels),
        name: descriptor.name.into(),
        labels: descriptor.labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        kind: descriptor.kind,
        unit: descriptor.unit.into(),
    })
}

/// Returns the id of a series: XXH3-64 over its name and sorted labels, every part preceded by its length.
fn id_of(name: &str, sorted_labels: &[(&str, &str)]) -> SeriesId {
    let mut hash = Xxh3::new();
    let mut part = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    part(name);
    for (label, value) in sorted_labels {
        part(label);
        part(value);
    }
    SeriesId(hash.digest() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe<'a>(name: &'a str, labels: &[(&'a str, &'a str)]) -> Descriptor<'a> {
        Descriptor { name, labels: labels.to_vec(), ..Descriptor::default() }
    }

    #[test]
    fn the_order_of_labels_does_not_matter() {
        let mut interner = Interner::new(10);
        let one = interner.intern(&mut describe("m", &[("a", "1"), ("b", "2")])).unwrap();
        let two = interner.intern(&mut describe("m", &[("b", "2"), ("a", "1")])).unwrap();
        assert_eq!(one, two);
        assert_eq!(interner.get(one).unwrap().label("b"), Some("2"));
        assert_eq!(interner.get(one).unwrap().label("c"), None);
    }

    #[test]
    fn a_full_interner_refuses_new_series_and_keeps_the_old() {
        let mut interner = Interner::new(1);
        let first = interner.intern(&mut describe("m", &[])).unwrap();
        assert_eq!(interner.intern(&mut describe("n", &[])), Err(InternError::Full { max: 1 }));
        assert_eq!(interner.intern(&mut describe("m", &[])), Ok(first));
    }

    #[test]
    fn a_label_twice_is_refused_unless_equal() {
        let mut interner = Interner::new(10);
        assert!(interner.intern(&mut describe("m", &[("a", "1"), ("a", "1")])).is_ok());
        assert!(matches!(
            interner.intern(&mut describe("m", &[("a", "1"), ("a", "2")])),
            Err(InternError::DuplicateLabel { .. })
        ));
    }
}
