//! A view's rows as words and numbers: what insight, rules and gauges read. Text columns are the key, numbers the values.

use arrow::array::{Array, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};

use serde_json::Value;

use crate::insight::Row;

/// Returns the rows of a batch. The window's bounds are neither key nor value; a NULL, a NaN and an infinity are no value.
///
/// One after the other, as they are asked for: in words a row takes many times its size in columns.
pub fn of_batch(batch: &RecordBatch) -> impl Iterator<Item = Row> {
    let mut words: Vec<(String, StringArray)> = Vec::new();
    let mut numbers: Vec<(String, Float64Array)> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match field.data_type() {
            DataType::Utf8 => words.push((field.name().clone(), column.as_string().clone())),
            DataType::Timestamp(..) => {}
            _ => {
                let Ok(column) = cast(column, &DataType::Float64) else { continue };
                numbers.push((field.name().clone(), column.as_primitive::<Float64Type>().clone()));
            }
        }
    }
    (0..batch.num_rows()).map(move |row| {
        let word =
            |column: &StringArray| if column.is_valid(row) { column.value(row).to_owned() } else { String::new() };
        let number = |column: &Float64Array| column.is_valid(row).then(|| column.value(row)).filter(|n| n.is_finite());
        Row {
            key: words.iter().map(|(name, column)| (name.clone(), word(column))).collect(),
            values: numbers.iter().filter_map(|(name, column)| Some((name.clone(), number(column)?))).collect(),
        }
    })
}

/// Returns the rows of a batch as JSON objects, each with the values of its text columns as one key.
pub fn as_json(batch: &RecordBatch) -> Vec<(String, Value)> {
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    let written = writer.write(batch).and_then(|()| writer.finish());
    let rows: Vec<Value> = match written {
        Ok(()) => serde_json::from_slice(&writer.into_inner()).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let keys = of_batch(batch).map(|row| row.key.into_values().collect::<Vec<_>>().join("/"));
    keys.zip(rows).collect()
}
