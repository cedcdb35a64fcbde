//! Group keys as small numbers: each distinct combination of key values is kept once per view.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{Row, RowConverter, Rows, SortField};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// The combinations of key values a view has seen, numbered from zero.
pub(super) struct Keys {
    /// None where the view groups by its window alone: then there is one key, number zero.
    known: Option<Known>,
}

struct Known {
    width: usize,
    converter: RowConverter,
    /// The keys side by side in one buffer: there may be as many as there are series.
    rows: Rows,
    /// By half of a key's hash, so that few keys are looked at that are another's, and none when the table grows.
    numbers: HashTable<(u32, u32)>,
}

impl Keys {
    pub fn new(types: &[DataType]) -> Result<Keys, ArrowError> {
        if types.is_empty() {
            return Ok(Keys { known: None });
        }
        let converter = RowConverter::new(types.iter().map(|of| SortField::new(of.clone())).collect())?;
        Ok(Keys {
            known: Some(Known {
                width: types.len(),
                rows: converter.empty_rows(0, 0),
                converter,
                numbers: HashTable::new(),
            }),
        })
    }

    /// Returns the number of each row's key. All columns have `rows` rows.
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize) -> Result<Vec<u32>, ArrowError> {
        let Some(known) = &mut self.known else { return Ok(vec![0; rows]) };
        let converted = known.converter.convert_columns(columns)?;
        Ok(converted.iter().map(|row| known.number(row)).collect())
    }

    /// Returns the values behind some numbers, a column per key.
    pub fn columns(&self, numbers: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        let Some(Known { converter, rows, .. }) = &self.known else { return Ok(Vec::new()) };
        converter.convert_rows(numbers.iter().map(|&number| rows.row(number as usize)))
    }

    /// Sorts numbers by the values behind them, so that a window's rows come in one order whatever came first.
    pub fn sort(&self, numbers: &mut [(u32, usize)]) {
        if let Some(Known { rows, .. }) = &self.known {
            numbers.sort_by_cached_key(|(number, _)| rows.row(*number as usize));
        }
    }

    /// Returns the number of columns of a key.
    pub fn width(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.width)
    }

    pub fn len(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.rows.num_rows())
    }

    pub fn bytes(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.rows.size() + known.numbers.allocation_size())
    }

    /// Keeps only the keys that are in use and returns the new number of each old one.
    pub fn compact(&mut self, used: &[u32]) -> Vec<Option<u32>> {
        let mut renumbered = vec![None; self.len()];
        let Some(known) = &mut self.known else { return renumbered };
        let old = std::mem::replace(&mut known.rows, known.converter.empty_rows(0, 0));
        known.numbers.clear();
        for &number in used {
            renumbered[number as usize] = Some(known.number(old.row(number as usize)));
        }
        renumbered
    }
}

impl Known {
    /// Returns the number of a key, giving it the next one where it is new.
    fn number(&mut self, row: Row<'_>) -> u32 {
        let (rows, half) = (&self.rows, xxh3_64(row.as_ref()) as u32);
        let same = |&(known, number): &(u32, u32)| known == half && rows.row(number as usize) == row;
        if let Some((_, known)) = self.numbers.find(spread(half), same) {
            return *known;
        }
        let next = u32::try_from(rows.num_rows()).expect("a view's groups are bounded far below u32::MAX");
        self.rows.push(row);
        self.numbers.insert_unique(spread(half), (half, next), |&(known, _)| spread(known));
        next
    }
}

/// Makes a hash for the table of half a one: it takes a bucket from the low bits, and tells those in it apart by the highest.
fn spread(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}
