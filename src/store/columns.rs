//! The columns of every table of our own, and how the model's nouns become rows of them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryBuilder, Float64Array, Float64Builder, Int32Builder, Int64Array, Int64Builder, MapBuilder,
    MapFieldNames, RecordBatch, StringBuilder, TimestampMicrosecondArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use serde::Serialize;

use super::table::TableSpec;
use crate::model::batch::Samples;
use crate::model::event::Event;
use crate::model::reject::Rejected;
use crate::model::series::{Descriptor, Interner, Kind, Series, SeriesId};
use crate::model::time::EventTime;

/// Every timestamp: microseconds, UTC, as Delta has them.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Maps of text to text, with the inner names Delta's kernel reads them back under.
pub fn text_map() -> DataType {
    let entry = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entry.into()), false)), false)
}

fn spec(name: &str, day_of: Option<&'static str>, sort_by: &[&str], columns: Vec<Field>) -> TableSpec {
    let sort_by = sort_by.iter().map(|&column| column.to_owned()).collect();
    TableSpec {
        name: name.to_owned(),
        schema: Arc::new(Schema::new(columns)),
        day_of,
        sort_by,
        compact_by: &[],
        unique_by: None,
    }
}

fn need(name: &str, of: DataType) -> Field {
    Field::new(name, of, false)
}

fn may(name: &str, of: DataType) -> Field {
    Field::new(name, of, true)
}

fn text(name: &str) -> Field {
    need(name, DataType::Utf8)
}

/// The tables that records go to, in the order their commits must follow: labels before the samples that use them, and
/// refusals before the positions that pass over them.
pub fn record_tables() -> Vec<TableSpec> {
    vec![series_table(), rejected_table(), late_table(), samples_table(), events_table()]
}

fn series_table() -> TableSpec {
    let columns = vec![
        need("series_id", DataType::Int64),
        text("name"),
        need("labels", text_map()),
        text("kind"),
        text("unit"),
        need("first_seen", timestamp()),
    ];
    // In the order they came in, which has alike beside alike; by their ids, which are hashes, nothing could be skipped.
    // Several writers meet a new series, and each tells of it.
    TableSpec { unique_by: Some("series_id"), compact_by: &["name", "series_id"], ..spec("series", None, &[], columns) }
}

fn rejected_table() -> TableSpec {
    let columns = vec![
        need("ts", timestamp()),
        text("topic"),
        need("partition", DataType::Int32),
        need("offset", DataType::Int64),
        text("reason"),
        text("message"),
        may("key", DataType::Binary),
        may("value", DataType::Binary),
        need("headers", text_map()),
    ];
    spec("rejected", None, &["ts"], columns)
}

fn late_table() -> TableSpec {
    let columns = vec![
        text("view"),
        need("ts", timestamp()),
        need("closed_through", timestamp()),
        text("topic"),
        need("partition", DataType::Int32),
        need("offset", DataType::Int64),
        may("series_id", DataType::Int64),
        may("value", DataType::Float64),
        may("event_id", DataType::Utf8),
    ];
    spec("late", None, &["ts"], columns)
}

fn samples_table() -> TableSpec {
    let columns = vec![need("series_id", DataType::Int64), need("ts", timestamp()), need("value", DataType::Float64)];
    spec("samples", Some("ts"), &["series_id", "ts"], columns)
}

fn events_table() -> TableSpec {
    let columns = vec![
        need("ts", timestamp()),
        text("id"),
        text("source"),
        text("type"),
        text("subject"),
        may("outcome", DataType::Utf8),
        may("duration_ms", DataType::Float64),
        may("severity", DataType::Utf8),
        need("attributes", text_map()),
        may("data", DataType::Utf8),
    ];
    spec("events", Some("ts"), &["ts"], columns)
}

/// Returns what the table of a name and these columns looks like: one of our own, or else one of a view.
pub fn spec_of(name: &str, schema: SchemaRef) -> TableSpec {
    let own = record_tables().into_iter().chain(loop_tables()).find(|spec| spec.name == name);
    let sort_by = schema.column_with_name("window_end").map(|_| "window_end".to_owned()).into_iter().collect();
    let of_view = TableSpec { name: name.to_owned(), schema, day_of: None, sort_by, compact_by: &[], unique_by: None };
    own.unwrap_or(of_view)
}

/// The tables of what the loop finds, says and remembers.
pub fn loop_tables() -> Vec<TableSpec> {
    use DataType::{Float64, Int64, Utf8};
    let track = || vec![text("view"), text("column"), need("key", text_map())];
    let evidence = vec![
        may("load", Float64),
        may("load_at", timestamp()),
        may("forecast_upper", Float64),
        may("forecast_issued_at", timestamp()),
        may("capacity_per_replica", Float64),
        may("previous_replicas", Int64),
    ];
    let anomaly = [vec![text("id"), need("at", timestamp())], track()].concat();
    let forecast =
        [vec![text("id"), need("issued_at", timestamp()), need("target_time", timestamp())], track()].concat();
    let numbers = |names: &[&str]| names.iter().map(|name| may(name, Float64)).collect::<Vec<_>>();
    vec![
        spec(
            "anomalies",
            None,
            &["at"],
            [anomaly, vec![text("method")], numbers(&["value", "expected", "score"])].concat(),
        ),
        spec(
            "forecasts",
            None,
            &["issued_at"],
            [forecast, numbers(&["yhat", "yhat_lower", "yhat_upper", "level"]), vec![text("model")]].concat(),
        ),
        spec(
            "alerts",
            None,
            &["at"],
            vec![
                text("id"),
                text("rule"),
                text("rule_version"),
                text("fingerprint"),
                text("severity"),
                text("state"),
                need("at", timestamp()),
                need("active_since", timestamp()),
                need("labels", text_map()),
                need("annotations", text_map()),
                may("value", Float64),
            ],
        ),
        spec(
            "decisions",
            None,
            &["at"],
            vec![
                text("id"),
                text("target"),
                need("epoch", Int64),
                need("at", timestamp()),
                may("desired_replicas", Int64),
                may("abstention", Utf8),
                text("reason"),
                need("confidence", Float64),
                may("cost_per_hour", Float64),
                need("evidence", DataType::Struct(evidence.into())),
            ],
        ),
        spec("state", None, &[], vec![need("watermark", timestamp()), text("body")]),
    ]
}

/// One row of `late`: a record that came after its last window in a view had closed, or its first where the view is
/// corrected, and how far the view had closed then.
#[derive(Clone, Debug, Serialize)]
pub struct LateRow {
    pub view: String,
    pub ts: EventTime,
    pub closed_through: EventTime,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub series_id: Option<i64>,
    pub value: Option<f64>,
    pub event_id: Option<String>,
}

impl LateRow {
    /// Tells whether both are of one row and one view, whenever it was found to be late.
    pub fn is_same_row(&self, other: &LateRow) -> bool {
        let place = |row: &LateRow| (row.offset, row.partition, row.ts, row.series_id, row.value.map(f64::to_bits));
        place(self) == place(other)
            && (&self.view, &self.topic, &self.event_id) == (&other.view, &other.topic, &other.event_id)
    }
}

/// One row of `state`: the memory of the loop as of a tick.
#[derive(Clone, Debug, Serialize)]
pub struct StateRow {
    pub watermark: EventTime,
    pub body: String,
}

/// Turns samples into rows of `samples`.
pub fn samples(batch: &Samples, interner: &Interner, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let all = interner.ids();
    let ids = batch.series.iter().map(|&at| all.get(at as usize).map_or(0, |id| id.0));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids)),
        Arc::new(TimestampMicrosecondArray::from(batch.ts.clone()).with_timezone("UTC")),
        Arc::new(Float64Array::from(batch.value.clone())),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}

/// Turns series first seen at some moment into rows of `series`.
pub fn series<'a>(
    new: impl Iterator<Item = Series<'a>>,
    first_seen: EventTime,
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let mut ids = Int64Builder::new();
    let (mut names, mut kinds, mut units) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let mut labels = map_builder();
    for one in new {
        ids.append_value(one.id.0);
        names.append_value(one.name);
        kinds.append_value(one.kind.as_str());
        units.append_value(one.unit);
        append_map(&mut labels, one.labels())?;
    }
    let ids = ids.finish();
    let seen = vec![first_seen.as_micros(); ids.len()];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        Arc::new(names.finish()),
        Arc::new(labels.finish()),
        Arc::new(kinds.finish()),
        Arc::new(units.finish()),
        Arc::new(TimestampMicrosecondArray::from(seen).with_timezone("UTC")),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}

/// Gives each row of `series` to a function: its id, what it describes, and when it was first seen.
///
/// # Errors
/// Columns that are not those of `series`.
pub fn each_series(
    batch: &RecordBatch,
    mut f: impl FnMut(SeriesId, &mut Descriptor<'_>, EventTime),
) -> Result<(), ArrowError> {
    let column = |name: &str| {
        let missing = || ArrowError::SchemaError(format!("expected the columns of series, found no {name}"));
        batch.column_by_name(name).ok_or_else(missing)
    };
    let (ids, seen) = (column("series_id")?, column("first_seen")?);
    let (ids, seen) = (ids.as_primitive::<Int64Type>(), seen.as_primitive::<TimestampMicrosecondType>());
    let words = |name| Ok::<_, ArrowError>(column(name)?.as_string::<i32>());
    let (names, kinds, units) = (words("name")?, words("kind")?, words("unit")?);
    let labels = column("labels")?.as_map();
    let (keys, values) = (labels.keys().as_string::<i32>(), labels.values().as_string::<i32>());
    for (row, ends) in labels.value_offsets().windows(2).enumerate() {
        let mut described = Descriptor {
            name: names.value(row),
            labels: (ends[0] as usize..ends[1] as usize).map(|at| (keys.value(at), values.value(at))).collect(),
            kind: Kind::parse(kinds.value(row)).unwrap_or_default(),
            unit: units.value(row),
        };
        f(SeriesId(ids.value(row)), &mut described, EventTime::from_micros(seen.value(row)));
    }
    Ok(())
}

/// Turns events into rows of `events`.
pub fn events(rows: &[Event], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut words: [StringBuilder; 7] = Default::default();
    let mut duration = Float64Builder::new();
    let mut attributes = map_builder();
    let ts: Vec<i64> = rows.iter().map(|event| event.ts.as_micros()).collect();
    for event in rows {
        let [id, source, kind, subject, outcome, severity, data] = &mut words;
        id.append_value(&event.id);
        source.append_value(&event.source);
        kind.append_value(&event.kind);
        subject.append_value(&event.subject);
        outcome.append_option(event.outcome.as_deref());
        severity.append_option(event.severity.as_deref());
        data.append_option(event.data.as_deref());
        duration.append_option(event.duration_ms);
        append_map(&mut attributes, event.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
    }
    let [id, source, kind, subject, outcome, severity, data] = words.map(|mut b| Arc::new(b.finish()) as ArrayRef);
    let ts = Arc::new(TimestampMicrosecondArray::from(ts).with_timezone("UTC"));
    let duration = Arc::new(duration.finish());
    let attributes = Arc::new(attributes.finish());
    let columns = vec![ts as ArrayRef, id, source, kind, subject, outcome, duration, severity, attributes, data];
    RecordBatch::try_new(schema.clone(), columns)
}

/// Turns refusals into rows of `rejected`.
pub fn rejected(rows: &[Rejected], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut ts = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    let (mut partition, mut offset) = (Int32Builder::new(), Int64Builder::new());
    let mut words: [StringBuilder; 3] = Default::default();
    let (mut key, mut value) = (BinaryBuilder::new(), BinaryBuilder::new());
    let mut headers = map_builder();
    for row in rows {
        let [topic, reason, message] = &mut words;
        ts.append_value(row.at.as_micros());
        topic.append_value(&row.from.topic);
        partition.append_value(row.from.partition);
        offset.append_value(row.from.offset);
        reason.append_value(row.why.reason.as_str());
        message.append_value(&row.why.message);
        key.append_option(row.key.as_deref());
        value.append_option(row.value.as_deref());
        let readable: Vec<(&str, String)> = row
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into()))
            .collect();
        append_map(&mut headers, readable.iter().map(|(name, value)| (*name, value.as_str())))?;
    }
    let [topic, reason, message] = words.map(|mut b| Arc::new(b.finish()) as ArrayRef);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ts.finish()),
        topic,
        Arc::new(partition.finish()),
        Arc::new(offset.finish()),
        reason,
        message,
        Arc::new(key.finish()),
        Arc::new(value.finish()),
        Arc::new(headers.finish()),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}

/// Turns any records whose fields are named like the columns into rows. For the small tables of the loop: it goes
/// through the same serialisation as the topics, so table and topic cannot drift apart.
pub fn records<T: Serialize>(rows: &[T], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut decoder = ReaderBuilder::new(schema.clone()).with_batch_size(rows.len().max(1)).build_decoder()?;
    decoder.serialize(rows)?;
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

type TextMapBuilder = MapBuilder<StringBuilder, StringBuilder>;

fn map_builder() -> TextMapBuilder {
    let names = MapFieldNames { entry: "key_value".to_owned(), key: "key".to_owned(), value: "value".to_owned() };
    MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
}

fn append_map<'a>(
    builder: &mut TextMapBuilder,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), ArrowError> {
    for (name, value) in pairs {
        builder.keys().append_value(name);
        builder.values().append_value(value);
    }
    builder.append(true)
}
