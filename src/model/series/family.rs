//! What series have in common, kept once.

use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

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
    /// Indices into `all`.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Families {
    pub fn get(&self, number: u32) -> Option<&Family> {
        self.all.get(number as usize)
    }

    /// Returns the number of the family that the next series belongs to.
    pub fn intern(&mut self, described: &Descriptor<'_>, series: usize) -> u32 {
        let Descriptor { name, labels, kind, unit } = described;
        let label_names = || labels.iter().map(|(name, _)| *name);
        let hash = hash(&self.hasher, name, *kind, unit, label_names());
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
        let (all, hasher) = (&self.all, &self.hasher);
        self.numbers.insert_unique(hash, next, |&number| all[number as usize].hash(hasher));
        next
    }

    /// Forgets the families that a series at or after `mark` brought.
    pub fn rewind(&mut self, mark: usize) {
        while let Some(family) = self.all.pop_if(|family| family.first_series >= mark) {
            let number = self.all.len() as u32;
            if let Ok(entry) = self.numbers.find_entry(family.hash(&self.hasher), |known| *known == number) {
                entry.remove();
            }
        }
    }
}

impl Family {
    fn hash(&self, hasher: &DefaultHashBuilder) -> u64 {
        let label_names = self.label_names.iter().map(|name| &**name);
        hash(hasher, &self.name, self.kind, &self.unit, label_names)
    }
}

fn hash<'a>(
    hasher: &DefaultHashBuilder,
    name: &str,
    kind: Kind,
    unit: &str,
    label_names: impl Iterator<Item = &'a str>,
) -> u64 {
    let mut hash = hasher.build_hasher();
    (name, kind, unit).hash(&mut hash);
    label_names.for_each(|label| label.hash(&mut hash));
    hash.finish()
}
