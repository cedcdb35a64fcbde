//! Series: a metric name with labels, interned once and then carried as a small number.

use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The name of a series across instances and restarts: a 64-bit hash of its name, sorted labels, kind and unit, stored as
/// `long`. Kelvins and degrees Celsius of one name are two series: what does not add up must not be mixed.
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

/// Gives every distinct (name, labels, kind, unit) one dense number, and keeps what it stands for.
///
/// Two lookups: by the descriptor itself, and by a decoder's *memo*, a 128-bit hash of the raw bytes that spelled the
/// series, which spares parsing and sorting the labels of a record whose spelling was seen before.
#[derive(Debug)]
pub struct Interner {
    series: Vec<Arc<Series>>,
    by_id: HashMap<SeriesId, SeriesRef>,
    memo: HashMap<u128, SeriesRef>,
    /// Spellings remembered since the last [`Interner::mark`].
    fresh: Vec<u128>,
    series_max: usize,
}

impl Interner {
    /// The memo holds this many spellings for each series allowed before it is dropped and learnt anew, so that a
    /// producer which shuffles its labels cannot grow it without end.
    const SPELLINGS_PER_SERIES_MAX: usize = 4;

    pub fn new(series_max: usize) -> Self {
        Interner { series: Vec::new(), by_id: HashMap::new(), memo: HashMap::new(), fresh: Vec::new(), series_max }
    }

    /// Allows so many series from now on; those that are known stay.
    pub fn set_series_max(&mut self, series_max: usize) {
        self.series_max = series_max;
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
        self.fresh.push(spelling);
    }

    /// Returns how many series there are, to go back to with [`Interner::rewind`].
    pub fn mark(&mut self) -> usize {
        self.fresh.clear();
        self.series.len()
    }

    /// Forgets the series that came since the mark: a record that is refused brings none.
    pub fn rewind(&mut self, mark: usize) {
        for series in self.series.drain(mark..) {
            self.by_id.remove(&series.id);
        }
        for spelling in self.fresh.drain(..) {
            if self.memo.get(&spelling).is_some_and(|series| series.0 as usize >= mark) {
                self.memo.remove(&spelling);
            }
        }
    }

    /// Returns the number of the series described, giving it the next one where it is new.
    pub fn intern(&mut self, descriptor: &mut Descriptor<'_>) -> Result<SeriesRef, InternError> {
        let series = build(descriptor)?;
        if let Some(&known) = self.by_id.get(&series.id) {
            let other = &self.series[known.0 as usize];
            if (&other.name, &other.labels, other.kind, &other.unit)
                != (&series.name, &series.labels, series.kind, &series.unit)
            {
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
        id: id_of(descriptor),
        name: descriptor.name.into(),
        labels: descriptor.labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        kind: descriptor.kind,
        unit: descriptor.unit.into(),
    })
}

/// Returns the id of a series: XXH3-64 over its name and sorted labels, every part preceded by its length, and over its
/// kind and unit where they are said.
fn id_of(Descriptor { name, labels: sorted_labels, kind, unit }: &Descriptor<'_>) -> SeriesId {
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
    if (*kind, *unit) != (Kind::default(), "") {
        part(kind.as_str());
        part(unit);
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
    fn another_unit_is_another_series() {
        let mut interner = Interner::new(10);
        let of = |unit| Descriptor { unit, ..describe("temperature", &[]) };
        let kelvin = interner.intern(&mut of("kelvin")).unwrap();
        assert_ne!(interner.intern(&mut of("celsius")).unwrap(), kelvin);
        assert_eq!(interner.intern(&mut of("kelvin")).unwrap(), kelvin);
    }

    #[test]
    fn a_full_interner_refuses_new_series_and_keeps_the_old() {
        let mut interner = Interner::new(1);
        let first = interner.intern(&mut describe("m", &[])).unwrap();
        assert_eq!(interner.intern(&mut describe("n", &[])), Err(InternError::Full { max: 1 }));
        assert_eq!(interner.intern(&mut describe("m", &[])), Ok(first));
    }

    #[test]
    fn a_refused_record_leaves_no_series() {
        let mut interner = Interner::new(2);
        let kept = interner.intern(&mut describe("a", &[])).unwrap();
        interner.remember(1, kept);
        let mark = interner.mark();
        let gone = interner.intern(&mut describe("b", &[])).unwrap();
        interner.remember(2, gone);
        interner.remember(3, kept);
        interner.rewind(mark);
        assert_eq!((interner.len(), interner.recall(1), interner.recall(2)), (1, Some(kept), None));
        assert_eq!(interner.recall(3), Some(kept), "another spelling of a series that stays");
        assert_eq!(interner.intern(&mut describe("c", &[])), Ok(gone), "its number is free again");
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
