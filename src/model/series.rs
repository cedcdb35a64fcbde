//! Series: a metric name with labels, interned once and then carried as a small number.

mod family;
pub mod index;
mod memo;
#[cfg(test)]
mod tests;
mod texts;

use std::fmt;
use std::ops::Range;

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use family::Families;
use memo::Memo;
use texts::Texts;

/// The name of a series across instances and restarts, stored as `long`: 12 bits that hash its name alone, then 52 that hash
/// its name, sorted labels, kind and unit. So the series of one metric stand together wherever rows are sorted by id, and a
/// question about one metric finds its rows side by side. Of a million series of one metric two are taken for one with a
/// chance of 1 in 9000; the second is refused then, never mixed with the first. Kelvins and degrees Celsius of one name are two series: what does not add up must not be mixed.
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

/// A series, as the [`Interner`] keeps it.
#[derive(Clone, Copy)]
pub struct Series<'a> {
    pub id: SeriesId,
    pub name: &'a str,
    pub kind: Kind,
    pub unit: &'a str,
    label_names: &'a [Box<str>],
    texts: &'a Texts,
    /// Where the value of its first label stands among the texts.
    first_value: usize,
}

impl<'a> Series<'a> {
    /// Returns names and values of its labels, sorted by name, names unique.
    pub fn labels(self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> {
        let value = move |at| self.texts.get(self.first_value + at).unwrap_or_default();
        self.label_names.iter().enumerate().map(move |(at, name)| (&**name, value(at)))
    }

    pub fn label(self, name: &str) -> Option<&'a str> {
        let at = self.label_names.binary_search_by(|known| (**known).cmp(name)).ok()?;
        self.texts.get(self.first_value + at)
    }

    fn is(self, described: &Descriptor<'_>) -> bool {
        (self.name, self.kind, self.unit) == (described.name, described.kind, described.unit)
            && self.labels().eq(described.labels.iter().copied())
    }
}

impl fmt::Debug for Series<'_> {
    /// Writes the series alone, not all the texts it lies among.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Series { id, name, kind, unit, .. } = self;
        let labels: Vec<_> = self.labels().collect();
        write!(f, "{id:?} {name} {labels:?} {kind:?} {unit:?}")
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
///
/// There may be millions of series: what they share is kept once, and what is their own lies side by side in a few long
/// vectors, a row each, rather than in pieces of memory of its own.
#[derive(Debug)]
pub struct Interner {
    ids: Vec<SeriesId>,
    family_of: Vec<u32>,
    /// Of each series, where the value of its first label stands in `values`; the others follow.
    first_value: Vec<usize>,
    values: Texts,
    families: Families,
    /// With the id beside the number: looking for one must not reach into `ids` at random.
    by_id: HashTable<(SeriesId, SeriesRef)>,
    memo: Memo,
    /// Spellings remembered since the last [`Interner::mark`].
    fresh: Vec<u128>,
    series_max: usize,
}

impl Interner {
    /// The memo holds this many spellings for each series allowed before it is dropped and learnt anew, so that a
    /// producer which shuffles its labels cannot grow it without end.
    const SPELLINGS_PER_SERIES_MAX: usize = 4;

    pub fn new(series_max: usize) -> Self {
        Interner {
            ids: Vec::new(),
            family_of: Vec::new(),
            first_value: Vec::new(),
            values: Texts::default(),
            families: Families::default(),
            by_id: HashTable::new(),
            memo: Memo::default(),
            fresh: Vec::new(),
            series_max,
        }
    }

    /// Allows so many series from now on; those that are known stay.
    pub fn set_series_max(&mut self, series_max: usize) {
        self.series_max = series_max;
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tells whether no new series is taken in any more.
    pub fn is_full(&self) -> bool {
        self.ids.len() >= self.series_max
    }

    pub fn get(&self, at: SeriesRef) -> Option<Series<'_>> {
        let row = at.0 as usize;
        let family = self.families.get(*self.family_of.get(row)?)?;
        Some(Series {
            id: *self.ids.get(row)?,
            name: &family.name,
            kind: family.kind,
            unit: &family.unit,
            label_names: &family.label_names,
            texts: &self.values,
            first_value: *self.first_value.get(row)?,
        })
    }

    /// Returns the ids of all series, indexed by [`SeriesRef`].
    pub fn ids(&self) -> &[SeriesId] {
        &self.ids
    }

    /// Returns some series, by their numbers in order of first sight.
    pub fn range(&self, numbers: Range<usize>) -> impl Iterator<Item = Series<'_>> + Clone {
        numbers.filter_map(|number| self.get(SeriesRef(u32::try_from(number).ok()?)))
    }

    pub fn find(&self, id: SeriesId) -> Option<SeriesRef> {
        self.by_id.find(id.hash(), |(known, _)| *known == id).map(|(_, number)| *number)
    }

    /// Returns the series that was remembered under this spelling.
    pub fn recall(&self, spelling: u128) -> Option<SeriesRef> {
        self.memo.get(spelling)
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
        self.ids.len()
    }

    /// Forgets the series that came since the mark: a record that is refused brings none.
    pub fn rewind(&mut self, mark: usize) {
        for number in mark..self.ids.len() {
            let id = self.ids[number];
            if let Ok(entry) = self.by_id.find_entry(id.hash(), |(known, _)| *known == id) {
                entry.remove();
            }
        }
        if let Some(&first_value) = self.first_value.get(mark) {
            self.values.truncate(first_value);
        }
        self.ids.truncate(mark);
        self.family_of.truncate(mark);
        self.first_value.truncate(mark);
        self.families.rewind(mark);
        for spelling in self.fresh.drain(..) {
            if self.memo.get(spelling).is_some_and(|series| series.0 as usize >= mark) {
                self.memo.remove(spelling);
            }
        }
    }

    /// Returns the number of the series described, giving it the next one where it is new.
    pub fn intern(&mut self, descriptor: &mut Descriptor<'_>) -> Result<SeriesRef, InternError> {
        if descriptor.name.is_empty() {
            return Err(InternError::EmptyName);
        }
        descriptor.labels.sort_unstable();
        descriptor.labels.dedup();
        if let Some(pair) = descriptor.labels.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(InternError::DuplicateLabel { name: pair[0].0.to_owned() });
        }
        let id = id_of(descriptor);
        if let Some(known) = self.find(id) {
            return match self.get(known) {
                Some(other) if !other.is(descriptor) => Err(InternError::Collision { other: other.name.to_owned() }),
                _ => Ok(known),
            };
        }
        if self.is_full() {
            return Err(InternError::Full { max: self.series_max });
        }
        Ok(self.push(id, descriptor))
    }

    /// Takes in a series read back from the store, outside the limit: what was accepted once stays accepted.
    pub fn restore(&mut self, id: SeriesId, descriptor: &mut Descriptor<'_>) -> SeriesRef {
        descriptor.labels.sort_unstable();
        self.find(id).unwrap_or_else(|| self.push(id, descriptor))
    }

    fn push(&mut self, id: SeriesId, described: &Descriptor<'_>) -> SeriesRef {
        let number = self.ids.len();
        let next = SeriesRef(u32::try_from(number).expect("the limit on series is far below u32::MAX"));
        self.ids.push(id);
        self.family_of.push(self.families.intern(described, number));
        self.first_value.push(self.values.len());
        described.labels.iter().for_each(|(_, value)| self.values.push(value));
        self.by_id.insert_unique(id.hash(), (id, next), |(known, _)| known.hash());
        next
    }
}

impl SeriesId {
    /// An id is a hash already, but for its first bits, which a table of one metric's series would find all the same.
    fn hash(self) -> u64 {
        (self.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// How many bits of an id are of the name alone.
const NAME_BITS: u32 = 12;

/// Returns the id of a series: XXH3-64 over its name, and over its name and sorted labels, every part preceded by its
/// length, and its kind and unit where they are said.
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
    let (of_name, of_all) = (xxh3_64(name.as_bytes()), hash.digest());
    SeriesId((of_name >> (64 - NAME_BITS) << (64 - NAME_BITS) | of_all >> NAME_BITS) as i64)
}
