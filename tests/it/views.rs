//! Golden views: every folder of `tests/views`, fed record by record, against rows that an independent engine computed
//! (`tests/tools/views_oracle.py`). `BELLWETHER_VIEWS_DIR` names another folder of such folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use bellwether::ingest::{Bounds, Decoder, Format, Limits, Record, decoder};
use bellwether::model::batch::Decoded;
use bellwether::model::series::Interner;
use bellwether::model::time::EventTime;
use bellwether::run::dimensions;
use bellwether::store::columns;
use bellwether::stream::definition::{Defaults, Definitions};
use bellwether::stream::watermark::PartitionKey;
use bellwether::stream::{Emission, Engine, Source};
use serde_json::{Map, Value, json};

pub const DEFAULTS: Defaults = Defaults { lateness: Duration::from_secs(10), state_bytes_max: usize::MAX };
const FLOAT_TOLERANCE: f64 = 1e-9;

#[tokio::test]
async fn golden_views() {
    let folders = folders();
    let (mut views, mut wrong) = (0, Vec::new());
    for folder in &folders {
        match check(folder).await {
            Ok(count) => views += count,
            Err(what) => wrong.push(format!("{}: {what}", folder.file_name().unwrap().to_string_lossy())),
        }
    }
    println!("{} folders, {views} views as expected", folders.len() - wrong.len());
    assert!(wrong.is_empty(), "{} of {} folders differ:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}

/// Returns the folders of all golden views, in order.
pub fn folders() -> Vec<PathBuf> {
    let root = std::env::var_os("BELLWETHER_VIEWS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/views"), PathBuf::from);
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "{} holds no folder", root.display());
    folders
}

/// Runs one folder; returns how many views it holds.
async fn check(folder: &Path) -> Result<usize, String> {
    let definitions = Definitions::read(&sql_files(folder), DEFAULTS).map_err(|error| error.to_string())?;
    let names: Vec<String> = definitions.views.iter().map(|view| view.name.to_string()).collect();
    let mut rows: BTreeMap<String, Vec<Value>> = names.iter().map(|name| (name.clone(), Vec::new())).collect();
    for emission in run(folder, definitions).await? {
        rows.get_mut(&*emission.view).unwrap().extend(as_json(&emission.rows));
    }
    let tolerances = tolerances(folder);
    for (view, rows) in rows {
        let path = folder.join(format!("{view}.expected.ndjson"));
        let expected = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let expected = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        compare(expected, rows, &tolerances).map_err(|what| format!("{view}: {what}"))?;
    }
    Ok(names.len())
}

pub fn sql_files(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "sql") && path.file_stem().unwrap() != "oracle");
    files.sort();
    files.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())).collect()
}

pub async fn run(folder: &Path, definitions: Definitions) -> Result<Vec<Emission>, String> {
    let said = |error: &dyn std::error::Error| {
        let chain = std::iter::successors(Some(error), |error| error.source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    let tables = dimensions::read(&definitions.dimensions).await.map_err(|error| format!("{error:#}"))?;
    let events = columns::record_tables().into_iter().find(|table| table.name == "events").unwrap().schema;
    let mut engine = Engine::new(definitions.views, &tables, &events).await.map_err(|error| said(&error))?;
    let mut interner = Interner::new(100_000);
    let mut emitted = Vec::new();
    let inputs = [("metrics", Format::JsonMetrics, Source::Metrics), ("events", Format::JsonEvents, Source::Events)];
    let inputs: Vec<_> = inputs
        .into_iter()
        .filter_map(|(name, format, source)| {
            let text = fs::read_to_string(folder.join(format!("{name}.ndjson"))).ok()?;
            let partition: PartitionKey = (name.into(), 0);
            engine.clock(source).add(partition.clone());
            Some((text, format, source, partition))
        })
        .collect();
    for (text, format, source, partition) in &inputs {
        let mut decoder = decoder(*format, Limits::default());
        for line in text.lines() {
            let decoded = decode(&mut *decoder, line, &mut interner)?;
            let newest = match source {
                Source::Metrics => {
                    engine.push_samples(&decoded.samples, &interner, &mut Vec::new()).map_err(|error| said(&error))?;
                    decoded.samples.ts.iter().copied().map(EventTime::from_micros).max()
                }
                Source::Events => {
                    let rows = columns::events(&decoded.events, &events).unwrap();
                    engine.push_events(&rows, &mut Vec::new()).map_err(|error| said(&error))?;
                    decoded.events.iter().map(|event| event.ts).max()
                }
            };
            engine.clock(*source).observe(partition, newest.ok_or("a record without a row")?);
            emitted.extend(engine.advance().await.map_err(|error| said(&error))?);
        }
    }
    for (.., source, partition) in &inputs {
        engine.clock(*source).observe(partition, EventTime::parse_rfc3339("2100-01-01T00:00:00Z").unwrap());
    }
    emitted.extend(engine.advance().await.map_err(|error| said(&error))?);
    Ok(emitted)
}

fn decode(decoder: &mut dyn Decoder, line: &str, interner: &mut Interner) -> Result<Decoded, String> {
    let bounds = Bounds { oldest: EventTime::MIN, newest: EventTime::MAX };
    let record = Record { value: line.as_bytes(), timestamp: EventTime::from_micros(0), headers: &[] };
    let mut decoded = Decoded::default();
    decoder.decode(&record, bounds, interner, &mut decoded).map_err(|reject| format!("{line}: {reject:?}"))?;
    Ok(decoded)
}

/// Lines of the oracle of the form `-- approximate: p99 0.01`: relative tolerances of columns.
pub fn tolerances(folder: &Path) -> BTreeMap<String, f64> {
    let oracle = fs::read_to_string(folder.join("oracle.sql")).unwrap_or_default();
    let lines = oracle.lines().filter_map(|line| line.strip_prefix("-- approximate:"));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            (words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap())
        })
        .collect()
}

/// Returns the rows of batches as JSON objects.
pub fn rows_as_json(batches: &[RecordBatch]) -> Vec<Value> {
    batches.iter().flat_map(as_json).collect()
}

fn as_json(rows: &RecordBatch) -> Vec<Value> {
    let fields = rows.schema();
    let row = |row: usize| {
        let values = fields.fields().iter().zip(rows.columns());
        Value::Object(values.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
    };
    (0..rows.num_rows()).map(row).collect()
}

fn value(column: &dyn Array, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Utf8 => json!(column.as_string::<i32>().value(row)),
        DataType::Int64 => json!(column.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => match column.as_primitive::<Float64Type>().value(row) {
            finite if finite.is_finite() => json!(finite),
            other => json!(other.to_string()),
        },
        DataType::Boolean => json!(column.as_boolean().value(row)),
        DataType::Timestamp(..) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
            let at = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            json!(at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
        }
        DataType::Date32 => {
            json!(column.as_primitive::<arrow::datatypes::Date32Type>().value_as_date(row).unwrap().to_string())
        }
        DataType::Map(..) => {
            let entries = column.as_map().value(row);
            let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1).as_string::<i32>());
            let pairs = (0..entries.len()).map(|at| (keys.value(at).to_owned(), json!(values.value(at))));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        other => panic!("a view has a column of type {other}"),
    }
}

pub fn compare(
    mut expected: Vec<Value>,
    mut came: Vec<Value>,
    tolerances: &BTreeMap<String, f64>,
) -> Result<(), String> {
    // Floats last: two rows that differ in nothing else may stand either way.
    let order = |row: &Value| {
        let fields = row.as_object().unwrap();
        let (floats, rest): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| value.is_f64());
        rest.into_iter().chain(floats).map(|(_, value)| value.to_string()).collect::<Vec<_>>()
    };
    expected.sort_by_cached_key(order);
    came.sort_by_cached_key(order);
    for (expected, came) in expected.iter().zip(&came) {
        if !same_row(expected, came, tolerances) {
            return Err(format!("expected {expected}\n    came {came}"));
        }
    }
    match expected.len() == came.len() {
        true => Ok(()),
        false => {
            let odd = expected.get(came.len()).or_else(|| came.get(expected.len()));
            Err(format!("expected {} rows, came {}; the first over: {}", expected.len(), came.len(), odd.unwrap()))
        }
    }
}

fn same_row(expected: &Value, came: &Value, tolerances: &BTreeMap<String, f64>) -> bool {
    let (expected, came) = (expected.as_object().unwrap(), came.as_object().unwrap());
    expected.len() == came.len()
        && expected.iter().all(|(name, value)| {
            let tolerance = tolerances.get(name).copied().unwrap_or(FLOAT_TOLERANCE);
            came.get(name).is_some_and(|other| same(value, other, tolerance))
        })
}

fn same(expected: &Value, came: &Value, tolerance: f64) -> bool {
    match (expected.as_f64(), came.as_f64()) {
        (Some(a), Some(b)) => a == b || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1e-3),
        _ => expected == came,
    }
}
