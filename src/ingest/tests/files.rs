//! Golden files of what is imported: every file under `tests/data/import` gives exactly what stands beside it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, MapBuilder, RecordBatch, StringArray, StringBuilder};
use serde_json::{Value as Json, json};

use super::{Bench, Limits, Record, time};
use crate::ingest::tabular::{Columns, ColumnsError, Holds, Tabular};
use crate::ingest::{Bounds, Format, exposition};
use crate::model::reject::Reject;
use crate::model::time::EventTime;

const FALLBACK: &str = "2026-03-01T12:00:00Z";

fn anytime() -> Bounds {
    Bounds { oldest: EventTime::from_micros(0), newest: time("2100-01-01T00:00:00Z") }
}

fn told(at: usize, reject: &Reject) -> Json {
    json!({ "at": at, "reason": reject.reason.as_str(), "message": reject.message })
}

fn lines(text: &str) -> Json {
    let mut bench = Bench { decoder: exposition(Limits::default()), ..Bench::new(Format::InfluxLine) };
    let mut refused = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let record = Record { value: line.as_bytes(), timestamp: time(FALLBACK), headers: &[] };
        if let Err(reject) = bench.decoder.decode(&record, anytime(), &mut bench.interner, &mut bench.out) {
            refused.push(told(at + 1, &reject));
        }
    }
    json!({ "seen": bench.seen(), "refused": refused })
}

fn cells(text: &str) -> Json {
    let mut bench = Bench::new(Format::InfluxLine);
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let is_wide = !names.contains(&"value");
    let values = if is_wide { vec!["cpu".to_owned(), "mem".to_owned()] } else { Vec::new() };
    let columns = Columns { values, metric: is_wide.then(|| "node".to_owned()), ..Columns::default() };
    let mut tabular = Tabular::new(columns.find(&names, |_| Holds::Text).unwrap(), Limits::default());
    let mut refused = Vec::new();
    for (at, record) in reader.records().enumerate() {
        let done = tabular.csv(&record.unwrap(), anytime(), &mut bench.interner, &mut bench.out);
        refused.extend(done.err().map(|reject| told(at + 1, &reject)));
    }
    json!({ "layout": tabular.layout().to_string(), "seen": bench.seen(), "refused": refused })
}

#[test]
fn every_file_gives_what_stands_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/import");
    let mut wrong = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = || fs::read_to_string(&path).unwrap();
        let got = match path.extension().and_then(|extension| extension.to_str()) {
            Some("prom" | "om") => lines(&text()),
            Some("csv") => cells(&text()),
            _ => continue,
        };
        let beside = path.with_extension("expected.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&beside, serde_json::to_string_pretty(&got).unwrap() + "\n").unwrap();
            continue;
        }
        let expected: Json = serde_json::from_str(&fs::read_to_string(&beside).unwrap()).unwrap();
        if got != expected {
            wrong.push(format!("{}:\n got {got:#}\n expected {expected:#}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn columns_that_cannot_be_told_are_named_with_what_there_is() {
    let find = |columns: Columns, header: &[&str]| columns.find(header, |_| Holds::Text).unwrap_err();
    let found = |text: &str| text.to_owned();
    assert_eq!(
        find(Columns { time: Some("when".to_owned()), ..Columns::default() }, &["ts", "value"]),
        ColumnsError::Absent { column: found("when"), found: found("\"ts\", \"value\"") }
    );
    let untold = |wanted, option| ColumnsError::Untold { wanted, option, found: found("\"a\", \"b\"") };
    assert_eq!(find(Columns::default(), &["a", "b"]), untold("the time", "--time COLUMN"));
    let timed = Columns { time: Some("a".to_owned()), ..Columns::default() };
    assert_eq!(find(timed, &["a", "b"]), untold("numbers", "--value COLUMN"));
}

/// A table as `SELECT * FROM metrics` writes it to Parquet, and one with other types, read back.
#[test]
fn typed_columns_are_read_as_what_they_are() {
    let mut labels = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for zone in ["eu", "us"] {
        labels.keys().append_value("zone");
        labels.values().append_value(zone);
        labels.append(true).unwrap();
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("ts", Arc::new(Int64Array::from(vec![Some(1_772_366_400), None]))),
        ("name", Arc::new(StringArray::from(vec!["up", "up"]))),
        ("labels", Arc::new(labels.finish())),
        ("value", Arc::new(Float64Array::from(vec![1.0, 0.0]))),
        ("kind", Arc::new(StringArray::from(vec!["gauge", "gauge"]))),
        ("series_id", Arc::new(Int64Array::from(vec![1, 2]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let schema = batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let layout = Columns::default().find(&names, |at| Holds::of(schema.field(at).data_type())).unwrap();
    let mut bench = Bench::new(Format::InfluxLine);
    let mut refused = Vec::new();
    Tabular::new(layout, Limits::default())
        .batch(&batch, anytime(), &mut bench.interner, &mut bench.out, |row, reject| {
            refused.push((row, reject.to_string()));
        })
        .unwrap();
    assert_eq!(refused, [(1, "expected a time, got none".to_owned())]);
    let seen = bench.seen();
    assert_eq!(seen["samples"].as_array().unwrap().len(), 1);
    assert_eq!(seen["samples"][0]["labels"], json!({ "zone": "eu" }));
    assert_eq!(seen["samples"][0]["ts"], json!("2026-03-01T12:00:00Z"));
}
