//! Group keys as small numbers: each distinct combination of key values is kept once per view.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, RowConverter, SortField};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// The combinations of key values a view has seen, numbered from zero.
pub(super) struct Keys {
    /// None where the view groups by its window alone: then there is one key, number zero.
    converter: Option<RowConverter>,
    numbers: HashTable<u32>,
    rows: Vec<OwnedRow>,
    bytes: usize,
}

impl Keys {
    pub fn new(types: &[DataType]) -> Result<Keys, ArrowError> {
        let fields: Vec<SortField> = types.iter().map(|of| SortField::new(of.clone())).collect();
        let converter = (!fields.is_empty()).then(|| RowConverter::new(fields)).transpose()?;
        Ok(Keys { converter, numbers: HashTable::new(), rows: Vec::new(), bytes: 0 })
    }

    /// Returns the number of each row's key. All columns have `rows` rows.
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u32>, ArrowError> {
        let Some(converter) = &mut self.converter else { return Ok(vec![0; rows]) };
        let converted = converter.convert_columns(columns)?;
        let mut numbers = Vec::with_capacity(rows);
        for row in converted.iter() {
            let hash = xxh3_64(row.as_ref());
            let same = |&number: &u32| self.rows[number as usize].row() == row;
            let number = match self.numbers.find(hash, same) {
                Some(&number) => number,
                None => {
                    let next = u32::try_from(self.rows.len()).expect("a view's groups are bounded far below u32::MAX");
                    let kept = &self.rows;
                    let rehash = |&number: &u32| match kept.get(number as usize) {
                        Some(row) => xxh3_64(row.as_ref()),
                        None => hash,
                    };
                    self.numbers.insert_unique(hash, next, rehash);
                    self.bytes += row.as_ref().len() + size_of::<OwnedRow>();
                    self.rows.push(row.owned());
                    next
                }
            };
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// Returns the values behind some numbers, a column per key.
    pub fn columns(&self, numbers: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        let Some(converter) = &self.converter else { return Ok(Vec::new()) };
        converter.convert_rows(numbers.iter().map(|&number| self.rows[number as usize].row()))
    }

    /// Sorts numbers by the values behind them, so that a window's rows come in one order whatever came first.
    pub fn sort(&self, numbers: &mut [(u32, usize)]) {
        if self.converter.is_some() {
            numbers.sort_unstable_by(|(a, _), (b, _)| self.rows[*a as usize].cmp(&self.rows[*b as usize]));
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps only the keys that are in use and returns the new number of each old one.
    pub fn compact(&mut self, used: &[u32]) -> Vec<Option<u32>> {
        let mut renumbered = vec![None; self.rows.len()];
        let old = std::mem::take(&mut self.rows);
        self.numbers.clear();
        self.bytes = 0;
        for &number in used {
            let next = self.rows.len() as u32;
            let row = old[number as usize].clone();
            renumbered[number as usize] = Some(next);
            self.bytes += row.as_ref().len() + size_of::<OwnedRow>();
            let hash = xxh3_64(row.as_ref());
            self.rows.push(row);
            let kept = &self.rows;
            self.numbers.insert_unique(hash, next, |&n| xxh3_64(kept[n as usize].as_ref()));
        }
        renumbered
    }
}
