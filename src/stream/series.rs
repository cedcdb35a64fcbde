//! What is known of each series, as columns: the side of a row that never changes, evaluated once per series.

use std::sync::Arc;

use arrow::array::{ArrayRef, MapBuilder, MapFieldNames, RecordBatch, StringBuilder};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use super::StreamError;
use crate::model::series::{Interner, Series};

/// The columns of `metrics` that depend on the series alone.
pub(super) const STATIC_COLUMNS: [&str; 4] = ["name", "labels", "kind", "unit"];

pub(super) fn text_map() -> DataType {
    let entry = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entry.into()), false)), false)
}

pub(super) fn schema() -> SchemaRef {
    let [name, labels, kind, unit] = STATIC_COLUMNS;
    Arc::new(Schema::new(vec![
        Field::new(name, DataType::Utf8, false),
        Field::new(labels, text_map(), false),
        Field::new(kind, DataType::Utf8, false),
        Field::new(unit, DataType::Utf8, false),
    ]))
}

/// All series, row by row as they are numbered.
pub(super) struct SeriesTable {
    rows: RecordBatch,
}

impl Default for SeriesTable {
    fn default() -> Self {
        SeriesTable { rows: RecordBatch::new_empty(schema()) }
    }
}

impl SeriesTable {
    /// Takes in the series that are new since the last call.
    pub fn extend(&mut self, interner: &Interner) -> Result<(), StreamError> {
        let known = self.rows.num_rows();
        let Some(new) = interner.all().get(known..).filter(|new| !new.is_empty()) else { return Ok(()) };
        let new = columns(new).map_err(|source| StreamError::Series { source })?;
        self.rows = arrow::compute::concat_batches(&schema(), [&self.rows, &new])
            .map_err(|source| StreamError::Series { source })?;
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Returns the rows from `start` on.
    pub fn since(&self, start: usize) -> RecordBatch {
        self.rows.slice(start, self.rows.num_rows().saturating_sub(start))
    }

    pub fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.rows.column_by_name(name)
    }
}

/// Values of one expression for every series, grown as series come.
#[derive(Default)]
pub(super) struct PerSeries {
    values: Option<ArrayRef>,
}

impl PerSeries {
    pub fn extend(&mut self, new: ArrayRef) -> Result<(), ArrowError> {
        self.values = Some(match self.values.take() {
            None => new,
            Some(old) => concat(&[&old, &new])?,
        });
        Ok(())
    }

    pub fn values(&self) -> Option<&ArrayRef> {
        self.values.as_ref()
    }
}

fn columns(new: &[Arc<Series>]) -> Result<RecordBatch, ArrowError> {
    let mut words: [StringBuilder; 3] = Default::default();
    let entries = MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() };
    let mut labels = MapBuilder::new(Some(entries), StringBuilder::new(), StringBuilder::new());
    for series in new {
        let [name, kind, unit] = &mut words;
        name.append_value(&series.name);
        kind.append_value(series.kind.as_str());
        unit.append_value(&series.unit);
        for (label, value) in &series.labels {
            labels.keys().append_value(label);
            labels.values().append_value(value);
        }
        labels.append(true)?;
    }
    let [name, kind, unit] = words.map(|mut builder| Arc::new(builder.finish()) as ArrayRef);
    RecordBatch::try_new(schema(), vec![name, Arc::new(labels.finish()), kind, unit])
}
