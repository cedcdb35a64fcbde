//! Series by their labels: which have a label of a value, and which values a label has. Grows and never forgets; reads no
//! store and evaluates no expression of a query.

use std::collections::{BTreeMap, BTreeSet};

use super::{Descriptor, Interner, Kind, Series, SeriesId, SeriesRef};
use crate::model::time::EventTime;

/// The label under which the name of a series is found.
pub const NAME: &str = "__name__";

/// All series of a store. A series is known by its row: its number in the order in which the index came to know it.
#[derive(Debug)]
pub struct Index {
    series: Interner,
    first_seen: Vec<EventTime>,
    labels: BTreeMap<Box<str>, Values>,
}

/// The values that one label has, each with the rows that have it.
#[derive(Debug, Default)]
pub struct Values {
    rows: BTreeMap<Box<str>, Vec<u32>>,
}

/// What series of one metric have in common, and how many they are.
#[derive(Debug, PartialEq, Eq)]
pub struct Alike<'a> {
    pub kind: Kind,
    pub unit: &'a str,
    /// The names of the labels that some of them have.
    pub label_names: BTreeSet<&'a str>,
    pub series: usize,
}

/// A set of rows of an [`Index`] of some length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// A bit for each row, the least first; those past `len` are not set.
    words: Vec<u64>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index { series: Interner::new(usize::MAX), first_seen: Vec::new(), labels: BTreeMap::new() }
    }
}

impl Index {
    /// Takes in a series; one that is known already, by its id, changes nothing.
    pub fn insert(&mut self, id: SeriesId, described: &mut Descriptor<'_>, first_seen: EventTime) {
        let row = self.series.len();
        self.series.restore(id, described);
        if self.series.len() == row {
            return;
        }
        self.first_seen.push(first_seen);
        let row = u32::try_from(row).expect("a series has a number of 32 bits");
        self.post(NAME, described.name, row);
        for (label, value) in &described.labels {
            self.post(label, value, row);
        }
    }

    fn post(&mut self, label: &str, value: &str, row: u32) {
        // Looked for first, so that a label or value that is known costs no memory.
        let values = match self.labels.get_mut(label) {
            Some(known) => known,
            None => self.labels.entry(label.into()).or_default(),
        };
        match values.rows.get_mut(value) {
            Some(known) => known.push(row),
            None => drop(values.rows.insert(value.into(), vec![row])),
        }
    }

    pub fn len(&self) -> usize {
        self.series.len()
    }

    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    pub fn get(&self, row: u32) -> Option<Series<'_>> {
        self.series.get(SeriesRef(row))
    }

    /// Returns when a series was first seen, by event time.
    pub fn first_seen(&self, row: u32) -> Option<EventTime> {
        self.first_seen.get(row as usize).copied()
    }

    pub fn find(&self, id: SeriesId) -> Option<u32> {
        self.series.find(id).map(|found| found.0)
    }

    /// Returns every label with its values, [`NAME`] among them, in the order of their names.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &Values)> {
        self.labels.iter().map(|(label, values)| (&**label, values))
    }

    /// Returns the values of one label; [`NAME`] has the names of the series. None where no series has the label.
    pub fn values(&self, label: &str) -> Option<&Values> {
        self.labels.get(label)
    }

    /// Returns what the series of one metric have in common, apart by kind and unit, in the order in which these came.
    pub fn alike(&self, rows: &[u32]) -> Vec<Alike<'_>> {
        // There are few families in a metric, and of each many series one after the other.
        let mut counts: Vec<(u32, usize)> = Vec::new();
        let mut at = 0;
        for family in rows.iter().filter_map(|&row| self.series.family_of.get(row as usize)) {
            if counts.get(at).is_none_or(|(known, _)| known != family) {
                at = counts.iter().position(|(known, _)| known == family).unwrap_or(counts.len());
            }
            match counts.get_mut(at) {
                Some((_, count)) => *count += 1,
                None => counts.push((*family, 1)),
            }
        }
        let mut alike: Vec<Alike<'_>> = Vec::new();
        for (number, count) in counts {
            let Some(family) = self.series.families.get(number) else { continue };
            let (kind, unit, label_names) = (family.kind, &*family.unit, family.label_names.iter().map(|name| &**name));
            match alike.iter_mut().find(|one| (one.kind, one.unit) == (kind, unit)) {
                Some(one) => {
                    one.label_names.extend(label_names);
                    one.series += count;
                }
                None => alike.push(Alike { kind, unit, label_names: label_names.collect(), series: count }),
            }
        }
        alike
    }
}

impl Values {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the rows that have this very value, ascending.
    pub fn get(&self, value: &str) -> &[u32] {
        self.rows.get(value).map_or(&[], Vec::as_slice)
    }

    /// Returns every value with the rows that have it, in the order of the values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[u32])> {
        self.rows.iter().map(|(value, rows)| (&**value, rows.as_slice()))
    }
}

impl Rows {
    const BITS: usize = u64::BITS as usize;

    pub fn none(len: usize) -> Rows {
        Rows { words: vec![0; len.div_ceil(Self::BITS)], len }
    }

    pub fn all(len: usize) -> Rows {
        Rows::none(len).complement()
    }

    /// Adds rows; those that the set has no place for are left out.
    pub fn extend(&mut self, rows: &[u32]) {
        for &row in rows {
            let row = row as usize;
            if row < self.len
                && let Some(word) = self.words.get_mut(row / Self::BITS)
            {
                *word |= 1 << (row % Self::BITS);
            }
        }
    }

    /// Leaves out what is not in `other`, which is of the same length.
    pub fn retain(&mut self, other: &Rows) {
        debug_assert_eq!(self.len, other.len, "both are rows of one index");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Returns the rows that are not in it.
    pub fn complement(mut self) -> Rows {
        self.words.iter_mut().for_each(|word| *word = !*word);
        let unused = self.words.len() * Self::BITS - self.len;
        if let Some(last) = self.words.last_mut() {
            *last &= u64::MAX >> unused;
        }
        self
    }

    pub fn contains(&self, row: u32) -> bool {
        let row = row as usize;
        self.words.get(row / Self::BITS).is_some_and(|word| word >> (row % Self::BITS) & 1 == 1)
    }

    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns the rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let first = (at * Self::BITS) as u32;
            std::iter::successors(Some(word), |&left| Some(left & left.wrapping_sub(1)))
                .take_while(|&left| left != 0)
                .map(move |left| first + left.trailing_zeros())
        })
    }
}

#[cfg(test)]
mod tests;
