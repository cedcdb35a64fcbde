//! Group keys as small numbers: each distinct combination of key values is kept once per view.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{Row, RowConverter, Rows, SortField};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::model::series::spread;

/// The combinations of key values a view has seen, numbered from zero.
pub(super) struct Keys {
    /// None where the view groups by its window alone: then there is one key, number zero.
    known: Option<Known>,
}

struct Known {
    width: usize,
    converter: RowConverter,
    /// The keys side by side, in pieces of [`PIECE`]: there may be as many as there are series.
    rows: Vec<Rows>,
    /// By half of a key's hash, so that few keys are looked at that are another's, and none when the table grows.
    numbers: HashTable<(u32, u32)>,
}

impl Keys {
    pub fn new(types: &[DataType]) -> Result<Keys, ArrowError> {
        if types.is_empty() {
            return Ok(Keys { known: None });
        }
        let converter = RowConverter::new(types.iter().map(|of| SortField::new(of.clone())).collect())?;
        Ok(Keys { known: Some(Known { width: types.len(), rows: Vec::new(), converter, numbers: HashTable::new() }) })
    }

    /// Returns the number of each row's key. All columns have `rows` rows.
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u32>, ArrowError> {
        let Some(known) = &mut self.known else { return Ok(vec![0; rows]) };
        let converted = known.converter.convert_columns(columns)?;
        Ok(converted.iter().map(|row| known.number(row)).collect())
    }

    /// Returns the values behind some numbers, a column per key.
    pub fn columns(&self, numbers: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        let Some(known) = &self.known else { return Ok(Vec::new()) };
        known.converter.convert_rows(numbers.iter().map(|&number| row(&known.rows, number)))
    }

    /// Sorts numbers by the values behind them, so that a window's rows come in one order whatever came first.
    pub fn sort(&self, numbers: &mut [(u32, usize)]) {
        if let Some(Known { rows, .. }) = &self.known {
            numbers.sort_by_cached_key(|(number, _)| row(rows, *number));
        }
    }

    /// Returns the number of columns of a key.
    pub fn width(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.width)
    }

    pub fn len(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.numbers.len())
    }

    pub fn bytes(&self) -> usize {
        let of = |known: &Known| known.rows.iter().map(Rows::size).sum::<usize>() + known.numbers.allocation_size();
        self.known.as_ref().map_or(0, of)
    }

    /// Keeps only the keys that are in use and returns the new number of each old one.
    pub fn compact(&mut self, used: &[u32]) -> Vec<Option<u32>> {
        let mut renumbered = vec![None; self.len()];
        let Some(known) = &mut self.known else { return renumbered };
        let old = std::mem::take(&mut known.rows);
        known.numbers.clear();
        for &number in used {
            renumbered[number as usize] = Some(known.number(row(&old, number)));
        }
        renumbered
    }
}

const PIECE: usize = 1 << 14;

/// Returns the key with a number.
fn row(pieces: &[Rows], number: u32) -> Row<'_> {
    pieces[number as usize / PIECE].row(number as usize % PIECE)
}

impl Known {
    /// Returns the number of a key, giving it the next one where it is new.
    fn number(&mut self, key: Row<'_>) -> u32 {
        let (rows, half) = (&self.rows, xxh3_64(key.as_ref()) as u32);
        let same = |&(known, number): &(u32, u32)| known == half && row(rows, number) == key;
        if let Some((_, known)) = self.numbers.find(spread(half), same) {
            return *known;
        }
        let next = u32::try_from(self.numbers.len()).expect("a view's groups are bounded far below u32::MAX");
        if self.numbers.len().is_multiple_of(PIECE) {
            self.rows.push(self.converter.empty_rows(0, 0));
        }
        if let Some(last) = self.rows.last_mut() {
            last.push(key);
        }
        self.numbers.insert_unique(spread(half), (half, next), |&(known, _)| spread(known));
        next
    }
}
