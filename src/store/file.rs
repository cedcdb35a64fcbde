//! Rows to Parquet: sorted, split by day, tuned per column, with the statistics that let a reader skip the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{LexicographicalComparator, SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, SecondsFormat};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::{StoreError, TableSpec};

pub(super) const MICROS_PER_DAY: i64 = 86_400_000_000;
const ROW_GROUP_ROWS_MAX: usize = 131_072;
/// Where a column of numbers has more values in a row group than fit, they are no longer worth a dictionary.
const DICTIONARY_BYTES_MAX: usize = 16 << 10;

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
    let sorted = sort(&spec.sort_by, &all).map_err(failed)?;
    split_by_day(spec, &sorted).map_err(failed)?.into_iter().map(|(day, rows)| write(spec, day, &[rows])).collect()
}

/// Returns the UTC day of a time in microseconds, in days since the epoch.
pub(super) fn day_at(micros: i64) -> i64 {
    micros.div_euclid(MICROS_PER_DAY)
}

/// Returns the day that a partition value stands for.
pub(super) fn day_of(text: &str) -> Option<i64> {
    let midnight = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?;
    Some(day_at(midnight.and_utc().timestamp_micros()))
}

/// Returns the microseconds that a bound of a time stands for.
pub(super) fn time_of(text: &str) -> Option<i64> {
    Some(DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros())
}

/// Returns a day as Delta writes a partition value.
pub(super) fn day_text(day: i64) -> String {
    let at = DateTime::from_timestamp_micros(day.saturating_mul(MICROS_PER_DAY)).unwrap_or_default();
    at.format("%Y-%m-%d").to_string()
}

/// Returns rows in the order of these columns.
pub(super) fn sort(by: &[String], batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let columns: Vec<SortColumn> = by
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
        days.entry(day_at(*at)).or_default().push(row as u32);
    }
    if days.len() == 1 {
        return Ok(days.keys().map(|&day| (Some(day), batch.clone())).collect());
    }
    days.into_iter().map(|(day, rows)| Ok((Some(day), take_record_batch(batch, &UInt32Array::from(rows))?))).collect()
}

fn write(spec: &TableSpec, day: Option<i64>, batches: &[RecordBatch]) -> Result<Encoded, StoreError> {
    let mut file = Writer::new(spec, Shape::Fresh)?;
    batches.iter().try_for_each(|rows| file.write(rows))?;
    file.close(day)
}

/// What is known of the rows of a file before they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// What came in within a few seconds: few rows of each series.
    Fresh,
    /// Many rows of each series, one after the other.
    Compacted,
}

/// A file in the making; takes rows in the order of its table.
pub(super) struct Writer {
    table: String,
    schema: SchemaRef,
    parquet: ArrowWriter<Vec<u8>>,
    statistics: Statistics,
}

impl Writer {
    pub fn new(spec: &TableSpec, shape: Shape) -> Result<Writer, StoreError> {
        let failed = |source| StoreError::Parquet { table: spec.name.clone(), source };
        let parquet = ArrowWriter::try_new(Vec::new(), spec.schema.clone(), Some(properties(spec, shape)));
        Ok(Writer {
            table: spec.name.clone(),
            schema: spec.schema.clone(),
            parquet: parquet.map_err(failed)?,
            statistics: Statistics::default(),
        })
    }

    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), StoreError> {
        self.statistics.count(&self.schema, rows);
        self.parquet.write(rows).map_err(|source| StoreError::Parquet { table: self.table.clone(), source })
    }

    /// Returns about how many bytes the file would have if it ended here.
    pub fn size(&self) -> usize {
        self.parquet.bytes_written() + self.parquet.in_progress_size()
    }

    pub fn rows(&self) -> usize {
        self.statistics.rows
    }

    /// Returns the file, of rows of that day.
    pub fn close(self, day: Option<i64>) -> Result<Encoded, StoreError> {
        let bytes = self.parquet.into_inner().map_err(|source| StoreError::Parquet { table: self.table, source })?;
        Ok(Encoded { bytes: bytes.into(), day, stats: self.statistics.json() })
    }
}

/// Tells whether a file is wholly in the order that its table is compacted in: we wrote it so, and say so in it.
pub(super) fn is_sorted(spec: &TableSpec, file: &ParquetMetaData) -> bool {
    let ours = file.file_metadata().created_by().is_some_and(|by| by.starts_with("bellwether "));
    let order = sorting_columns(spec, Shape::Compacted);
    ours && order.is_some() && file.row_groups().iter().all(|group| group.sorting_columns() == order.as_ref())
}

fn sorting_columns(spec: &TableSpec, shape: Shape) -> Option<Vec<SortingColumn>> {
    let leaves = ArrowSchemaConverter::new().convert(&spec.schema).ok()?;
    let place =
        |name: &String| leaves.columns().iter().position(|leaf| leaf.path().parts() == std::slice::from_ref(name));
    let column = |name| Some(SortingColumn { column_idx: place(name)? as i32, descending: false, nulls_first: true });
    let columns: Option<Vec<SortingColumn>> = spec.order(shape).iter().map(column).collect();
    columns.filter(|columns| !columns.is_empty())
}

/// Times are packed as differences, numbers split into byte streams, words kept in dictionaries; zstd over all.
fn properties(spec: &TableSpec, shape: Shape) -> WriterProperties {
    let schema = &spec.schema;
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_sorting_columns(sorting_columns(spec, shape))
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
        properties = properties.set_column_encoding(path.clone(), encoding);
        properties = match may_repeat(spec, field, shape) {
            // Few values, in long runs or not, are smaller by their numbers; with more of them the writer changes over to
            // the encoding above.
            true => properties.set_column_dictionary_page_size_limit(path, DICTIONARY_BYTES_MAX),
            false => properties.set_column_dictionary_enabled(path, false),
        };
    }
    properties.build()
}

/// Tells whether a column of numbers is likely to say the same again and again.
fn may_repeat(spec: &TableSpec, field: &Field, shape: Shape) -> bool {
    let is_first_in_order = spec.order(shape).first() == Some(field.name());
    shape == Shape::Compacted && (is_first_in_order || *field.data_type() == DataType::Float64)
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

/// Row count and, of every plain column, the least and greatest value and the number of nulls: as Delta keeps them.
#[derive(Default)]
struct Statistics {
    rows: usize,
    columns: BTreeMap<String, Bounds>,
}

struct Bounds {
    nulls: usize,
    /// Of the rows that have a value, where there is such a row.
    range: Option<(Bound, Bound)>,
    /// Whether a value was met that bounds cannot be told of.
    unbounded: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Bound {
    Int(i64),
    Float(f64),
    Time(i64),
    Text(String),
}

impl Statistics {
    fn count(&mut self, schema: &SchemaRef, rows: &RecordBatch) {
        self.rows += rows.num_rows();
        for (field, column) in schema.fields().iter().zip(rows.columns()) {
            if !has_bounds(field.data_type()) {
                continue;
            }
            if !self.columns.contains_key(field.name()) {
                self.columns.insert(field.name().clone(), Bounds { nulls: 0, range: None, unbounded: false });
            }
            let Some(bounds) = self.columns.get_mut(field.name()) else { continue };
            bounds.nulls += column.null_count();
            match range(column) {
                Range::Empty => {}
                Range::Unbounded => bounds.unbounded = true,
                Range::Of(least, greatest) => bounds.widen(least, greatest),
            }
        }
    }

    fn json(&self) -> String {
        let (mut least, mut greatest, mut nulls) = (Map::new(), Map::new(), Map::new());
        for (name, bounds) in &self.columns {
            let Some((min, max)) = bounds.range.as_ref().filter(|_| !bounds.unbounded) else { continue };
            let (Some(min), Some(max)) = (min.json(), max.json()) else { continue };
            least.insert(name.clone(), min);
            greatest.insert(name.clone(), max);
            nulls.insert(name.clone(), json!(bounds.nulls));
        }
        json!({ "numRecords": self.rows, "minValues": least, "maxValues": greatest, "nullCount": nulls }).to_string()
    }
}

impl Bounds {
    fn widen(&mut self, least: Bound, greatest: Bound) {
        let (min, max) = self.range.get_or_insert_with(|| (least.clone(), greatest.clone()));
        if least.is_below(min) {
            *min = least;
        }
        if max.is_below(&greatest) {
            *max = greatest;
        }
    }
}

impl Bound {
    fn is_below(&self, other: &Bound) -> bool {
        match (self, other) {
            (Bound::Int(a), Bound::Int(b)) | (Bound::Time(a), Bound::Time(b)) => a < b,
            (Bound::Float(a), Bound::Float(b)) => a < b,
            (Bound::Text(a), Bound::Text(b)) => a < b,
            _ => false,
        }
    }

    fn json(&self) -> Option<Value> {
        match self {
            Bound::Int(value) => Some(json!(value)),
            Bound::Float(value) => Some(json!(value)),
            Bound::Time(micros) => time_text(*micros),
            // A bound may be cut short only with care; long ones are left out instead.
            Bound::Text(text) => (text.len() <= 64).then(|| json!(text)),
        }
    }
}

fn has_bounds(of: &DataType) -> bool {
    let time = matches!(of, DataType::Timestamp(TimeUnit::Microsecond, _));
    time || matches!(of, DataType::Int64 | DataType::Float64 | DataType::Utf8)
}

enum Range {
    Empty,
    Unbounded,
    Of(Bound, Bound),
}

impl Range {
    fn of<T>(least: Option<T>, greatest: Option<T>, bound: impl Fn(T) -> Bound) -> Range {
        match (least, greatest) {
            (Some(least), Some(greatest)) => Range::Of(bound(least), bound(greatest)),
            _ => Range::Empty,
        }
    }
}

/// Returns the bounds of a column's values.
fn range(column: &ArrayRef) -> Range {
    use arrow::compute::{max, max_string, min, min_string};
    match column.data_type() {
        DataType::Int64 => {
            let values = column.as_primitive::<Int64Type>();
            Range::of(min(values), max(values), Bound::Int)
        }
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>();
            match (min(values), max(values)) {
                // NaN, which is the greatest, and infinities have no JSON; a file that holds them goes without bounds.
                (Some(least), Some(greatest)) if !(least.is_finite() && greatest.is_finite()) => Range::Unbounded,
                (least, greatest) => Range::of(least, greatest, Bound::Float),
            }
        }
        DataType::Timestamp(..) => {
            let values = column.as_primitive::<TimestampMicrosecondType>();
            Range::of(min(values), max(values), Bound::Time)
        }
        _ => {
            let values = column.as_string::<i32>();
            Range::of(min_string(values), max_string(values), |text| Bound::Text(text.to_owned()))
        }
    }
}

fn time_text(micros: i64) -> Option<Value> {
    Some(json!(DateTime::from_timestamp_micros(micros)?.to_rfc3339_opts(SecondsFormat::Micros, true)))
}
