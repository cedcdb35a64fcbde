//! Answers as bytes: a table for people, CSV, JSON, newline-delimited JSON, Arrow IPC stream, Parquet.
//!
//! Map columns (labels, attributes) come out as JSON objects, and as `{k=v, k2=v2}` where a cell must be text. Nothing
//! here runs a query.

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, MapArray, StringArray};
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{JsonArray, JsonFormat, LineDelimited, WriterBuilder as JsonBuilder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::error::QueryError;

/// A way to write an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Columns drawn with lines, for people.
    Table,
    /// RFC 4180 with a header; NULL is empty.
    Csv,
    /// One array of objects, a key for every column, NULL and non-finite numbers as `null`.
    Json,
    /// One object a line.
    NdJson,
    /// Arrow IPC stream.
    Arrow,
    Parquet,
}

impl Format {
    pub const ALL: [Format; 6] =
        [Format::Table, Format::Csv, Format::Json, Format::NdJson, Format::Arrow, Format::Parquet];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::NdJson => "ndjson",
            Format::Arrow => "arrow",
            Format::Parquet => "parquet",
        }
    }

    /// Returns the media type, for HTTP.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Table => "text/plain; charset=utf-8",
            Format::Csv => "text/csv; charset=utf-8; header=present",
            Format::Json => "application/json",
            Format::NdJson => "application/x-ndjson",
            Format::Arrow => "application/vnd.apache.arrow.stream",
            Format::Parquet => "application/vnd.apache.parquet",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Format::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| format!("expected table, csv, json, ndjson, arrow or parquet, got {text:?}"))
    }
}

/// Writes an answer. `schema` is that of every batch; it is needed where there is none.
pub fn write(
    format: Format,
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut (impl Write + Send),
) -> Result<(), QueryError> {
    let written = match format {
        Format::Table => write_table(schema, batches, out),
        Format::Csv => write_csv(schema, batches, out),
        Format::Json => write_json::<JsonArray>(batches, out),
        Format::NdJson => write_json::<LineDelimited>(batches, out),
        Format::Arrow => write_arrow(schema, batches, out),
        Format::Parquet => write_parquet(schema, batches, out),
    };
    written.map_err(|source| QueryError::Write { format, source })
}

fn write_table(schema: &SchemaRef, batches: &[RecordBatch], out: &mut impl Write) -> Result<(), ArrowError> {
    // An empty batch carries the header where there is no row.
    let header = RecordBatch::new_empty(schema.clone());
    let flat = std::iter::once(&header).chain(batches).map(flatten).collect::<Result<Vec<_>, _>>()?;
    let options = FormatOptions::default().with_null("NULL");
    writeln!(out, "{}", pretty_format_batches_with_options(&flat, &options)?)?;
    Ok(())
}

fn write_csv(schema: &SchemaRef, batches: &[RecordBatch], out: &mut impl Write) -> Result<(), ArrowError> {
    let mut writer = CsvBuilder::new().with_header(true).build(out);
    writer.write(&flatten(&RecordBatch::new_empty(schema.clone()))?)?;
    batches.iter().try_for_each(|batch| writer.write(&flatten(batch)?))
}

fn write_json<F: JsonFormat>(batches: &[RecordBatch], out: &mut impl Write) -> Result<(), ArrowError> {
    let mut writer = JsonBuilder::new().with_explicit_nulls(true).build::<_, F>(out);
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()
}

fn write_arrow(schema: &SchemaRef, batches: &[RecordBatch], out: &mut impl Write) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(out, schema)?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()
}

fn write_parquet(schema: &SchemaRef, batches: &[RecordBatch], out: &mut (impl Write + Send)) -> Result<(), ArrowError> {
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(out, schema.clone(), Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.close()?;
    Ok(())
}

/// Returns the batch with every nested column as text.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(text_of(column)?);
        } else {
            fields.push(field.clone());
            columns.push(column.clone());
        }
    }
    if columns.is_empty() {
        return Ok(batch.clone());
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn text_of(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default().with_null("NULL");
    let cells: StringArray = match column.as_any().downcast_ref::<MapArray>() {
        Some(map) => {
            let keys = ArrayFormatter::try_new(map.keys(), &options)?;
            let values = ArrayFormatter::try_new(map.values(), &options)?;
            let cell = |row: usize| {
                let start = usize::try_from(*map.value_offsets().get(row)?).ok()?;
                let end = start + usize::try_from(map.value_length(row)).ok()?;
                let pairs: Vec<String> =
                    (start..end).map(|at| format!("{}={}", keys.value(at), values.value(at))).collect();
                map.is_valid(row).then(|| format!("{{{}}}", pairs.join(", ")))
            };
            (0..map.len()).map(cell).collect()
        }
        None => {
            let formatter = ArrayFormatter::try_new(column, &options)?;
            (0..column.len()).map(|row| column.is_valid(row).then(|| formatter.value(row).to_string())).collect()
        }
    };
    Ok(Arc::new(cells))
}

#[cfg(test)]
mod tests;
