//! The files themselves: the order of their rows, and the bounds by which a reader skips.

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::model::series::{Descriptor, Interner, SeriesId};
use crate::model::time::EventTime;
use crate::store::file::{Encoded, encode};

fn spec_of(table: &str) -> TableSpec {
    columns::record_tables().into_iter().find(|spec| spec.name == table).unwrap()
}

/// Returns the file of some series, each of them a batch.
fn file_of_series(ids: &[i64]) -> Encoded {
    let (mut interner, spec) = (Interner::new(0), spec_of("series"));
    for &id in ids {
        let labels = vec![("replica", "r1"), ("service", "s1")];
        interner.restore(SeriesId(id), &mut Descriptor { name: "m", labels, ..Descriptor::default() });
    }
    let one = |at| columns::series(interner.range(at..at + 1), EventTime::from_micros(1), &spec.schema).unwrap();
    encode(&spec, &(0..ids.len()).map(one).collect::<Vec<_>>()).unwrap().remove(0)
}

fn file_of_samples(series: &[i64]) -> Encoded {
    let spec = spec_of("samples");
    let times = TimestampMicrosecondArray::from(vec![1; series.len()]).with_timezone("UTC");
    let values = Float64Array::from(vec![0.5; series.len()]);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(series.to_vec())), Arc::new(times), Arc::new(values)];
    encode(&spec, &[RecordBatch::try_new(spec.schema.clone(), columns).unwrap()]).unwrap().remove(0)
}

#[test]
fn rows_are_in_the_order_of_their_table() {
    for given in [[1, 2, 3], [3, 1, 2]] {
        // Series stay as they came.
        for (file, expected) in [(file_of_samples(&given), [1, 2, 3]), (file_of_series(&given), given)] {
            let mut reader = ParquetRecordBatchReaderBuilder::try_new(file.bytes).unwrap().build().unwrap();
            let rows = reader.next().unwrap().unwrap();
            assert_eq!(rows["series_id"].as_primitive::<Int64Type>().values(), &expected);
            let stats: serde_json::Value = serde_json::from_str(&file.stats).unwrap();
            let told = ["minValues", "maxValues", "nullCount"].map(|of| stats[of]["series_id"].as_i64());
            assert_eq!((told, stats["numRecords"].as_i64()), ([Some(1), Some(3), Some(0)], Some(3)));
        }
    }
}

#[test]
fn every_column_has_bounds_but_the_words_in_maps() {
    let file = ParquetRecordBatchReaderBuilder::try_new(file_of_series(&[1, 2]).bytes).unwrap();
    for column in file.metadata().row_group(0).columns() {
        let has_bounds = column.statistics().is_some_and(|bounds| bounds.min_bytes_opt().is_some());
        let in_map = column.column_path().parts().len() > 1;
        assert_eq!(has_bounds, !in_map, "{}", column.column_path());
    }
}
