//! Labels as a column: maps of text to text, with the inner names that Delta's kernel reads them back under.

use std::sync::Arc;

use arrow::array::{MapArray, MapBuilder, MapFieldNames, StringBuilder};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;

use crate::model::series::Series;

const ENTRY: &str = "key_value";

/// Returns the type of the column.
pub fn map_type() -> DataType {
    let entry = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new(ENTRY, DataType::Struct(entry.into()), false)), false)
}

/// Returns the labels of series, a map for each.
pub fn maps<'a>(series: impl Iterator<Item = Series<'a>>) -> Result<MapArray, ArrowError> {
    let names = MapFieldNames { entry: ENTRY.to_owned(), key: "key".to_owned(), value: "value".to_owned() };
    let mut labels = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for series in series {
        for (label, value) in series.labels() {
            labels.keys().append_value(label);
            labels.values().append_value(value);
        }
        labels.append(true)?;
    }
    Ok(labels.finish())
}
