//! Every form of one small answer with labels, nulls and numbers JSON has no word for.

use arrow::array::{Float64Array, Int64Array, ListArray, MapBuilder, StringBuilder, TimestampMicrosecondArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::reader::StreamReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;

fn answer() -> RecordBatch {
    let mut labels = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for pairs in [Some(vec![("service", "api"), ("zone", "eu")]), Some(vec![]), None] {
        for (key, value) in pairs.iter().flatten() {
            labels.keys().append_value(key);
            labels.values().append_value(value);
        }
        labels.append(pairs.is_some()).unwrap();
    }
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
    let ts = TimestampMicrosecondArray::from(vec![0, 1_500_000, 2]).with_timezone("UTC");
    RecordBatch::try_from_iter_with_nullable([
        ("ts", Arc::new(ts) as ArrayRef, true),
        ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(-3)])), true),
        ("value", Arc::new(Float64Array::from(vec![0.5, f64::NAN, f64::INFINITY])), true),
        ("labels", Arc::new(labels.finish()), true),
        ("list", Arc::new(lists), true),
    ])
    .unwrap()
}

fn text(format: Format, batches: &[RecordBatch]) -> String {
    let mut out = Vec::new();
    write(format, &answer().schema(), batches, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn json_has_labels_as_objects() {
    let rows: serde_json::Value = serde_json::from_str(&text(Format::Json, &[answer()])).unwrap();
    let expected = serde_json::json!([
        {"ts": "1970-01-01T00:00:00Z", "n": 1, "value": 0.5, "labels": {"service": "api", "zone": "eu"}, "list": [1, null]},
        {"ts": "1970-01-01T00:00:01.500Z", "n": null, "value": null, "labels": {}, "list": null},
        {"ts": "1970-01-01T00:00:00.000002Z", "n": -3, "value": null, "labels": null, "list": []},
    ]);
    assert_eq!(rows, expected);
    let lines: Vec<serde_json::Value> =
        text(Format::NdJson, &[answer()]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(serde_json::Value::from(lines), expected);
}

#[test]
fn csv_and_table_have_labels_as_text() {
    assert_eq!(
        text(Format::Csv, &[answer()]),
        "ts,n,value,labels,list\n\
         1970-01-01T00:00:00Z,1,0.5,\"{service=api, zone=eu}\",\"[1, NULL]\"\n\
         1970-01-01T00:00:01.500Z,,NaN,{},\n\
         1970-01-01T00:00:00.000002Z,-3,inf,,[]\n"
    );
    let table = text(Format::Table, &[answer()]);
    assert!(table.contains("| {service=api, zone=eu} |") && table.contains("| NULL "), "{table}");
}

#[test]
fn sliced_batches_come_out_right() {
    let slice = answer().slice(0, 2).slice(1, 1);
    assert!(text(Format::Csv, std::slice::from_ref(&slice)).ends_with("NaN,{},\n"));
    assert!(text(Format::Json, &[slice]).contains("\"labels\":{}"));
}

#[test]
fn an_answer_without_rows_still_says_its_columns() {
    assert_eq!(text(Format::Json, &[]).trim(), "[]");
    assert_eq!(text(Format::NdJson, &[]), "");
    assert_eq!(text(Format::Csv, &[]), "ts,n,value,labels,list\n");
    assert!(text(Format::Table, &[]).contains("labels"));
    let mut out = Vec::new();
    write(Format::Arrow, &answer().schema(), &[], &mut out).unwrap();
    assert_eq!(StreamReader::try_new(&out[..], None).unwrap().schema(), answer().schema());
}

#[test]
fn arrow_and_parquet_round_trip() {
    let mut out = Vec::new();
    write(Format::Arrow, &answer().schema(), &[answer(), answer()], &mut out).unwrap();
    let read: Vec<RecordBatch> = StreamReader::try_new(&out[..], None).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), 2);
    let labels = |batch: &RecordBatch| batch.column(3).to_data();
    assert_eq!(labels(&read[1]), labels(&answer()));
    let mut out = Vec::new();
    write(Format::Parquet, &answer().schema(), &[answer()], &mut out).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(out)).unwrap().build().unwrap();
    let read: Vec<RecordBatch> = reader.collect::<Result<_, _>>().unwrap();
    assert_eq!(labels(&read[0]), labels(&answer()));
}

#[test]
fn names_of_formats_round_trip() {
    for format in Format::ALL {
        assert_eq!(format.as_str().parse(), Ok(format));
    }
    assert!("xml".parse::<Format>().unwrap_err().contains("expected table"));
}
