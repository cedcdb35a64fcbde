//! The side of a row that never changes: the columns of series, values computed once for each, and who wants its rows.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringBuilder, UInt32Array};
use arrow::compute::{concat, interleave, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use hashbrown::HashMap;

use crate::model::series::Series;
use crate::query::labels;

/// The columns of `metrics` that depend on the series alone.
pub(super) const STATIC_COLUMNS: [&str; 4] = ["name", "labels", "kind", "unit"];

fn schema() -> SchemaRef {
    let [name, labels, kind, unit] = STATIC_COLUMNS;
    Arc::new(Schema::new(vec![
        Field::new(name, DataType::Utf8, false),
        Field::new(labels, labels::map_type(), false),
        Field::new(kind, DataType::Utf8, false),
        Field::new(unit, DataType::Utf8, false),
    ]))
}

/// Returns series as rows.
pub(super) fn columns<'a>(series: impl Iterator<Item = Series<'a>> + Clone) -> Result<RecordBatch, ArrowError> {
    let mut words: [StringBuilder; 3] = Default::default();
    for series in series.clone() {
        let [name, kind, unit] = &mut words;
        name.append_value(series.name);
        kind.append_value(series.kind.as_str());
        unit.append_value(series.unit);
    }
    let [name, kind, unit] = words.map(|mut builder| Arc::new(builder.finish()) as ArrayRef);
    RecordBatch::try_new(schema(), vec![name, Arc::new(labels::maps(series)?), kind, unit])
}

/// Values of one expression for every series, grown as series come.
///
/// Chunks of falling size, neighbours joined when the later is no longer small beside the earlier: a series is copied
/// a logarithmic number of times, and a look-up sees a logarithmic number of chunks.
#[derive(Default)]
pub(super) struct PerSeries {
    chunks: Vec<ArrayRef>,
    /// The first series of each chunk.
    starts: Vec<u32>,
    len: usize,
}

impl PerSeries {
    pub fn extend(&mut self, new: ArrayRef) -> Result<(), ArrowError> {
        if new.is_empty() {
            return Ok(());
        }
        self.starts.push(self.len as u32);
        self.len += new.len();
        self.chunks.push(new);
        while let [.., earlier, later] = self.chunks.as_slice()
            && earlier.len() <= 2 * later.len()
        {
            let joined = concat(&[earlier, later])?;
            self.chunks.truncate(self.chunks.len() - 2);
            self.chunks.push(joined);
            self.starts.pop();
        }
        Ok(())
    }

    /// Returns the values of some series, all of which were taken in before.
    pub fn of(&self, series: &UInt32Array) -> Result<ArrayRef, ArrowError> {
        if let [all] = self.chunks.as_slice() {
            return take(all, series, None);
        }
        let chunks: Vec<&dyn Array> = self.chunks.iter().map(|chunk| chunk.as_ref()).collect();
        let place = |&series: &u32| {
            let chunk = self.starts.partition_point(|start| *start <= series).saturating_sub(1);
            (chunk, (series - self.starts[chunk]) as usize)
        };
        interleave(&chunks, &series.values().iter().map(place).collect::<Vec<_>>())
    }
}

/// Who wants the rows of each series.
#[derive(Default)]
pub(super) struct Routes {
    /// Of each series, an index into `lists`.
    of: Vec<u32>,
    /// Most series of one metric are wanted by the same: few lists serve all.
    lists: Vec<Vec<u16>>,
    numbers: HashMap<Vec<u16>, u32>,
}

impl Routes {
    /// Returns how many series have a route.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Takes in new series: for each who might want them, by number, whether it does.
    pub fn extend(&mut self, count: usize, wanted: &[(u16, BooleanArray)]) {
        let mut list = Vec::with_capacity(wanted.len());
        for at in 0..count {
            list.clear();
            list.extend(wanted.iter().filter(|(_, passes)| passes.value(at)).map(|(who, _)| *who));
            let number = match self.numbers.get(&list) {
                Some(&known) => known,
                None => {
                    let next = self.lists.len() as u32;
                    self.lists.push(list.clone());
                    self.numbers.insert(list.clone(), next);
                    next
                }
            };
            self.of.push(number);
        }
    }

    /// Tells of each of some series whether one wants its rows.
    pub fn wants(&self, who: u16, series: Range<usize>) -> BooleanArray {
        self.of[series].iter().map(|&list| Some(self.lists[list as usize].contains(&who))).collect()
    }

    /// Deals rows out: the number of each row goes into the list of everyone who wants its series.
    pub fn deal(&self, series: &[u32], hands: &mut [Vec<u32>]) {
        for (row, &series) in (0u32..).zip(series) {
            for &who in &self.lists[self.of[series as usize] as usize] {
                hands[who as usize].push(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn values_grow_by_few_copies_and_are_found() {
        let mut values = PerSeries::default();
        for batch in 0..1000i64 {
            values.extend(Arc::new(Int64Array::from_iter_values(batch * 3..batch * 3 + 3))).unwrap();
            assert!(values.chunks.len() <= 12, "{} chunks", values.chunks.len());
        }
        let asked = UInt32Array::from(vec![0, 2999, 1500, 3, 3]);
        let found = values.of(&asked).unwrap();
        assert_eq!(found.as_primitive::<Int64Type>().values(), &[0, 2999, 1500, 3, 3]);
    }

    #[test]
    fn rows_go_to_all_who_want_their_series_and_to_nobody_else() {
        let mut routes = Routes::default();
        routes.extend(3, &[(0, vec![true, false, false].into()), (2, vec![true, true, false].into())]);
        routes.extend(1, &[(0, vec![false].into()), (2, vec![true].into())]);
        let mut hands = vec![Vec::new(); 3];
        routes.deal(&[3, 0, 2, 1, 0], &mut hands);
        assert_eq!(hands, [vec![1, 4], vec![], vec![0, 1, 3, 4]]);
        assert_eq!(routes.lists.len(), 3);
    }
}
