//! What series have in common, kept once.

use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3;

use super::{Descriptor, Kind};

/// What the series of one metric mostly have in common: everything but the values of their labels.
#[derive(Debug)]
pub(super) struct Family {
    pub name: Box<str>,
    pub kind: Kind,
    pub unit: Box<str>,
    /// Sorted.
    pub label_names: Box<[Box<str>]>,
    /// The number of the series that brought it.
    first_series: usize,
}

#[derive(Debug, Default)]
pub(super) struct Families {
    all: Vec<Family>,
    /// Indices into `all`, by [`Families::hash`].
    numbers: HashTable<u32>,
}

impl Families {
    pub fn get(&self, number: u32) -> Option<&Family> {
        self.all.get(number as usize)
    }

    /// Returns the number of the family that the next series belongs to.
    pub fn intern(&mut self, described: &Descriptor<'_>, series: usize) -> u32 {
        let Descriptor { name, labels, kind, unit } = described;
        let label_names = || labels.iter().map(|(name, _)| *name);
        let hash = Self::hash(name, *kind, unit, label_names());
        let all = &self.all;
        let same = |number: &u32| {
            let known = &all[*number as usize];
            (&*known.name, known.kind, &*known.unit) == (*name, *kind, *unit)
                && known.label_names.iter().map(|name| &**name).eq(label_names())
        };
        if let Some(&known) = self.numbers.find(hash, same) {
            return known;
        }
        let next = u32::try_from(self.all.len()).expect("there are no more families than series");
        self.all.push(Family {
            name: (*name).into(),
            kind: *kind,
            unit: (*unit).into(),
            label_names: label_names().map(Into::into).collect(),
            first_series: series,
        });
        let all = &self.all;
        self.numbers.insert_unique(hash, next, |&number| all[number as usize].hash());
        next
    }

    /// Forgets the families that a series at or after `mark` brought.
    pub fn rewind(&mut self, mark: usize) {
        while let Some(family) = self.all.pop_if(|family| family.first_series >= mark) {
            let number = self.all.len() as u32;
            if let Ok(entry) = self.numbers.find_entry(family.hash(), |known| *known == number) {
                entry.remove();
            }
        }
    }

    fn hash<'a>(name: &'a str, kind: Kind, unit: &'a str, label_names: impl Iterator<Item = &'a str>) -> u64 {
        let mut hash = Xxh3::new();
        for part in [name, kind.as_str(), unit].into_iter().chain(label_names) {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.digest()
    }
}

impl Family {
    fn hash(&self) -> u64 {
        Families::hash(&self.name, self.kind, &self.unit, self.label_names.iter().map(|name| &**name))
    }
}
