//! A view's rows as words and numbers: what insight, rules and gauges read. Text columns are the key, numbers the values.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};

use serde_json::Value;

use crate::insight::Row;

/// Returns the rows of a batch. The window's bounds are neither key nor value; a NULL, a NaN and an infinity are no value.
pub fn of_batch(batch: &RecordBatch) -> Vec<Row> {
    let mut rows = vec![Row { key: BTreeMap::new(), values: BTreeMap::new() }; batch.num_rows()];
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match field.data_type() {
            DataType::Utf8 => {
                let words = column.as_string::<i32>();
                for (row, word) in rows.iter_mut().zip(words.iter()) {
                    row.key.insert(field.name().clone(), word.unwrap_or_default().to_owned());
                }
            }
            DataType::Timestamp(..) => {}
            _ => {
                let Ok(numbers) = cast(column, &DataType::Float64) else { continue };
                let numbers = numbers.as_primitive::<Float64Type>();
                for (row, number) in rows.iter_mut().zip(numbers.iter()) {
                    if let Some(number) = number.filter(|n| n.is_finite()) {
                        row.values.insert(field.name().clone(), number);
                    }
                }
            }
        }
    }
    rows
}

/// Returns the rows of a batch as JSON objects, each with the values of its text columns as one key.
pub fn as_json(batch: &RecordBatch) -> Vec<(String, Value)> {
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    let written = writer.write(batch).and_then(|()| writer.finish());
    let rows: Vec<Value> = match written {
        Ok(()) => serde_json::from_slice(&writer.into_inner()).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let keys = of_batch(batch).into_iter().map(|row| row.key.into_values().collect::<Vec<_>>().join("/"));
    keys.zip(rows).collect()
}
