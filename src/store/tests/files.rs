//! The files themselves: the order of their rows, and the bounds by which a reader skips.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::model::series::{Descriptor, Interner, SeriesId};
use crate::model::time::EventTime;
use crate::store::file::encode;

fn file_of_series(ids: &[i64]) -> bytes::Bytes {
    let mut interner = Interner::new(0);
    for &id in ids {
        let labels = vec![("replica", "r1"), ("service", "s1")];
        interner.restore(SeriesId(id), &mut Descriptor { name: "m", labels, ..Descriptor::default() });
    }
    let spec = columns::record_tables().into_iter().find(|spec| spec.name == "series").unwrap();
    let rows = columns::series(interner.range(0..ids.len()), EventTime::from_micros(1), &spec.schema).unwrap();
    encode(&spec, &[rows]).unwrap().remove(0).bytes
}

#[test]
fn rows_are_in_the_order_of_their_table() {
    for given in [[1, 2, 3], [3, 1, 2]] {
        let mut reader = ParquetRecordBatchReaderBuilder::try_new(file_of_series(&given)).unwrap().build().unwrap();
        let rows = reader.next().unwrap().unwrap();
        assert_eq!(rows["series_id"].as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    }
}

#[test]
fn every_column_has_bounds_but_the_words_in_maps() {
    let file = ParquetRecordBatchReaderBuilder::try_new(file_of_series(&[1, 2])).unwrap();
    for column in file.metadata().row_group(0).columns() {
        let has_bounds = column.statistics().is_some_and(|bounds| bounds.min_bytes_opt().is_some());
        let in_map = column.column_path().parts().len() > 1;
        assert_eq!(has_bounds, !in_map, "{}", column.column_path());
    }
}
