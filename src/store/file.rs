//! Rows to Parquet: sorted, split by day, tuned per column, with the statistics that let a reader skip the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{LexicographicalComparator, SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::{StoreError, TableSpec};

const MICROS_PER_DAY: i64 = 86_400_000_000;
const ROW_GROUP_ROWS_MAX: usize = 131_072;

/// One file to be written: its bytes, the day its rows are of, and its statistics in Delta's form.
pub(super) struct Encoded {
    pub bytes: Bytes,
    /// Days since the epoch, where the table is split by day.
    pub day: Option<i64>,
    pub stats: String,
}

/// Encodes rows as one file per day, or as one file where the table has no day.
pub(super) fn encode(spec: &TableSpec, batches: &[RecordBatch]) -> Result<Vec<Encoded>, StoreError> {
    let failed = |source| StoreError::Encode { table: spec.name.clone(), source };
    if spec.sort_by.is_empty() && spec.day_of.is_none() {
        return Ok(vec![write(spec, None, batches)?]);
    }
    let all = concat_batches(&spec.schema, batches).map_err(failed)?;
    let sorted = sort(spec, &all).map_err(failed)?;
    split_by_day(spec, &sorted).map_err(failed)?.into_iter().map(|(day, rows)| write(spec, day, &[rows])).collect()
}

/// Returns a day as Delta writes a partition value.
pub(super) fn day_text(day: i64) -> String {
    let at = DateTime::from_timestamp_micros(day.saturating_mul(MICROS_PER_DAY)).unwrap_or_default();
    at.format("%Y-%m-%d").to_string()
}

fn sort(spec: &TableSpec, batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let columns: Vec<SortColumn> = spec
        .sort_by
        .iter()
        .filter_map(|name| batch.column_by_name(name))
        .map(|values| SortColumn { values: Arc::clone(values), options: None })
        .collect();
    if columns.is_empty() || in_order(&columns, batch.num_rows())? {
        return Ok(batch.clone());
    }
    if let [series, ts] = columns.as_slice()
        && let (Some(series), Some(ts)) =
            (series.values.as_primitive_opt::<Int64Type>(), ts.values.as_primitive_opt::<TimestampMicrosecondType>())
    {
        return take_record_batch(batch, &order_of_samples(series.values(), ts.values()));
    }
    take_record_batch(batch, &lexsort_to_indices(&columns, None)?)
}

/// Tells whether nothing needs to be sorted, as where all rows are of one window. Costs little where it does: the first
/// pair out of order answers.
fn in_order(columns: &[SortColumn], rows: usize) -> Result<bool, arrow::error::ArrowError> {
    let comparator = LexicographicalComparator::try_new(columns)?;
    Ok((1..rows).all(|row| comparator.compare(row - 1, row).is_le()))
}

/// Sorts rows by (series, time). One comparison of a tuple is several times cheaper than the general row comparator,
/// and samples are nearly all of what is written.
fn order_of_samples(series: &[i64], ts: &[i64]) -> UInt32Array {
    let mut rows: Vec<(i64, i64, u32)> =
        series.iter().zip(ts).zip(0u32..).map(|((&series, &ts), row)| (series, ts, row)).collect();
    rows.sort_unstable();
    UInt32Array::from_iter_values(rows.into_iter().map(|(_, _, row)| row))
}

type Days = Vec<(Option<i64>, RecordBatch)>;

fn split_by_day(spec: &TableSpec, batch: &RecordBatch) -> Result<Days, arrow::error::ArrowError> {
    let Some(ts) = spec.day_of.and_then(|column| batch.column_by_name(column)) else {
        return Ok(vec![(None, batch.clone())]);
    };
    let ts = ts.as_primitive::<TimestampMicrosecondType>().values();
    let mut days: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for (row, at) in ts.iter().enumerate() {
        days.entry(at.div_euclid(MICROS_PER_DAY)).or_default().push(row as u32);
    }
    if days.len() == 1 {
        return Ok(days.keys().map(|&day| (Some(day), batch.clone())).collect());
    }
    days.into_iter().map(|(day, rows)| Ok((Some(day), take_record_batch(batch, &UInt32Array::from(rows))?))).collect()
}

fn write(spec: &TableSpec, day: Option<i64>, batches: &[RecordBatch]) -> Result<Encoded, StoreError> {
    let failed = |source| StoreError::Parquet { table: spec.name.clone(), source };
    let mut bytes = Vec::with_capacity(batches.iter().map(RecordBatch::get_array_memory_size).sum::<usize>() / 4);
    let properties = properties(&spec.schema);
    let mut writer = ArrowWriter::try_new(&mut bytes, spec.schema.clone(), Some(properties)).map_err(failed)?;
    batches.iter().try_for_each(|rows| writer.write(rows)).map_err(failed)?;
    writer.close().map_err(failed)?;
    Ok(Encoded { bytes: bytes.into(), day, stats: statistics(&spec.schema, batches).to_string() })
}

/// Times are packed as differences, numbers split into byte streams, words kept in dictionaries; zstd over all.
fn properties(schema: &SchemaRef) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_created_by(concat!("bellwether ", env!("CARGO_PKG_VERSION")).to_owned());
    for field in schema.fields() {
        let path = ColumnPath::from(field.name().as_str());
        if let DataType::Map(entries, _) = field.data_type() {
            properties = without_bounds(properties, &path, entries);
        }
        let encoding = match field.data_type() {
            DataType::Timestamp(..) | DataType::Int64 | DataType::Int32 => Encoding::DELTA_BINARY_PACKED,
            DataType::Float64 => Encoding::BYTE_STREAM_SPLIT,
            _ => continue,
        };
        properties = properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
    }
    properties.build()
}

/// Leaves out the least and the greatest word in a map: no reader skips by them, and to find them every word is compared.
fn without_bounds(
    mut properties: WriterPropertiesBuilder,
    map: &ColumnPath,
    entries: &Field,
) -> WriterPropertiesBuilder {
    let DataType::Struct(words) = entries.data_type() else { return properties };
    for word in words {
        let path = [map.parts(), &[entries.name().clone(), word.name().clone()]].concat();
        properties = properties.set_column_statistics_enabled(ColumnPath::new(path), EnabledStatistics::None);
    }
    properties
}

/// Returns row count and, of every plain column, the least and greatest value and the number of nulls.
fn statistics(schema: &SchemaRef, batches: &[RecordBatch]) -> Value {
    let (mut least, mut greatest, mut nulls) = (Map::new(), Map::new(), Map::new());
    for (at, field) in schema.fields().iter().enumerate() {
        let column = batches.iter().map(|rows| rows.column(at));
        let Some((min, max)) = bounds(field.data_type(), column.clone()) else { continue };
        least.insert(field.name().clone(), min);
        greatest.insert(field.name().clone(), max);
        nulls.insert(field.name().clone(), json!(column.map(|part| part.null_count()).sum::<usize>()));
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    json!({ "numRecords": rows, "minValues": least, "maxValues": greatest, "nullCount": nulls })
}

/// Returns the bounds of a column that comes in parts.
fn bounds<'a>(of: &DataType, column: impl Iterator<Item = &'a ArrayRef> + Clone) -> Option<(Value, Value)> {
    use arrow::compute::{max, max_string, min, min_string};
    match of {
        DataType::Int64 => {
            let values = column.map(|part| part.as_primitive::<Int64Type>());
            Some((json!(values.clone().filter_map(min).min()?), json!(values.filter_map(max).max()?)))
        }
        DataType::Float64 => {
            // NaN and infinities have no JSON; a file that holds them goes without bounds.
            let values = column.map(|part| part.as_primitive::<Float64Type>());
            let min = values.clone().filter_map(min).min_by(f64::total_cmp)?;
            let max = values.filter_map(max).max_by(f64::total_cmp)?;
            (min.is_finite() && max.is_finite()).then(|| (json!(min), json!(max)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let values = column.map(|part| part.as_primitive::<TimestampMicrosecondType>());
            Some((time_text(values.clone().filter_map(min).min()?)?, time_text(values.filter_map(max).max()?)?))
        }
        DataType::Utf8 => {
            let values = column.map(|part| part.as_string::<i32>());
            let (min, max) = (values.clone().filter_map(min_string).min()?, values.filter_map(max_string).max()?);
            // A bound may be cut short only with care; long ones are left out instead.
            (min.len() <= 64 && max.len() <= 64).then(|| (json!(min), json!(max)))
        }
        _ => None,
    }
}

fn time_text(micros: i64) -> Option<Value> {
    Some(json!(DateTime::from_timestamp_micros(micros)?.to_rfc3339_opts(SecondsFormat::Micros, true)))
}
