//! The ways in which records go wrong, tried on every format: each is refused with its reason, leaves nothing behind,
//! and does not disturb the record after it. Large inputs are made here rather than kept as files.

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics,
};
use prost::Message;

use super::{Bench, time};
use crate::ingest::{Format, Limits};
use crate::model::reject::Reason;

/// A point in time inside the bounds, in the spellings of the formats.
const NOW: &str = "2026-03-01T12:00:00Z";
const NOW_NANOS: u64 = 1_772_366_400_000_000_000;

/// What the wrong part of a record is to be.
#[derive(Clone)]
struct Parts {
    name: String,
    value: &'static str,
    time: &'static str,
    nanos: u64,
    /// JSON or text for one label or attribute.
    label: String,
}

impl Parts {
    fn good() -> Self {
        Parts { name: "m".into(), value: "1.5", time: NOW, nanos: NOW_NANOS, label: r#""x""#.into() }
    }
}

fn record(format: Format, parts: &Parts) -> Vec<u8> {
    let Parts { name, value, time, nanos, label } = parts;
    let text = match format {
        Format::JsonMetrics => format!(r#"{{"ts":"{time}","name":"{name}","labels":{{"a":{label}}},"value":{value}}}"#),
        Format::JsonEvents => format!(
            r#"{{"ts":"{time}","type":"{name}","subject":"s","duration_ms":{value},"attributes":{{"a":{label}}}}}"#
        ),
        Format::CloudEvents => format!(
            r#"{{"specversion":"1.0","id":"1","source":"s","type":"{name}","time":"{time}","ext":{label},
               "data":{{"duration_ms":{value}}}}}"#
        ),
        Format::OtlpMetrics => format!(
            r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"{name}","gauge":{{"dataPoints":[
               {{"timeUnixNano":"{nanos}","asDouble":{value},
               "attributes":[{{"key":"a","value":{{"stringValue":{label}}}}}]}}]}}}}]}}]}}]}}"#
        ),
        Format::InfluxLine => format!("{name},a={} value={value} {nanos}", label.trim_matches('"')),
    };
    text.into_bytes()
}

/// Feeds the record between two good ones and checks that only it is refused.
fn refused(format: Format, bytes: &[u8]) -> (Reason, String) {
    let mut bench = Bench::new(format);
    let good = record(format, &Parts::good());
    bench.feed(&good).expect("the good record is accepted");
    let before = bench.seen();
    let reject = bench
        .feed(bytes)
        .expect_err(&format!("{format:?}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)])));
    assert_eq!(bench.seen(), before, "{format:?}: a refused record must leave nothing");
    assert!(reject.message.len() < 600, "{format:?}: {}", reject.message);
    bench.feed(&good).expect("the stream goes on");
    (reject.reason, reject.message)
}

fn expect(reason: Reason, what: &str, make: impl Fn(Format) -> Option<Vec<u8>>) {
    for format in Format::ALL {
        if let Some(bytes) = make(format) {
            let (got, message) = refused(format, &bytes);
            assert_eq!(got, reason, "{what} as {format:?}: {message}");
        }
    }
}

#[test]
fn nothing_at_all() {
    expect(Reason::Empty, "no bytes", |_| Some(Vec::new()));
    expect(Reason::Empty, "blanks", |_| Some(b" \n\t\n".to_vec()));
}

#[test]
fn wrong_types() {
    expect(Reason::Type, "a bare word", |format| match format {
        // The data of a CloudEvent is foreign, so its types are not ours to refuse; its time is.
        Format::CloudEvents => Some(record(format, &Parts { time: "yesterday", ..Parts::good() })),
        Format::InfluxLine => Some(record(format, &Parts { value: "high", ..Parts::good() })),
        _ => None,
    });
    expect(Reason::Type, "a string for a number", |format| {
        let quoted = record(format, &Parts { value: r#""high""#, ..Parts::good() });
        matches!(format, Format::JsonMetrics | Format::JsonEvents | Format::OtlpMetrics).then_some(quoted)
    });
    expect(Reason::Type, "an object for a label", |format| {
        let nested = record(format, &Parts { label: r#"{"b":1}"#.into(), ..Parts::good() });
        (format != Format::InfluxLine).then_some(nested)
    });
    expect(Reason::Type, "a bool for a name", |format| {
        let text = String::from_utf8(record(format, &Parts { name: "@".into(), ..Parts::good() })).unwrap();
        (format != Format::InfluxLine).then(|| text.replace(r#""@""#, "true").into_bytes())
    });
    expect(Reason::Type, "a number for a record", |format| {
        matches!(format, Format::JsonMetrics | Format::JsonEvents | Format::CloudEvents).then(|| b"42".to_vec())
    });
    expect(Reason::Type, "an array for a record", |format| {
        matches!(format, Format::JsonMetrics | Format::JsonEvents | Format::CloudEvents)
            .then(|| br#"[["2026-03-01T12:00:00Z",null,"m",null,1]]"#.to_vec())
    });
}

#[test]
fn missing_fields() {
    let without: [(Format, &[&str]); 4] = [
        (Format::JsonMetrics, &[r#""name":"m","#, r#","value":1.5"#]),
        (Format::JsonEvents, &[r#""type":"m","#, r#""subject":"s","#]),
        (Format::CloudEvents, &[r#""specversion":"1.0","#, r#""id":"1","#, r#""source":"s","#, r#""type":"m","#]),
        (Format::OtlpMetrics, &[r#""name":"m","#, r#""asDouble":1.5,"#, r#""timeUnixNano":"1772366400000000000","#]),
    ];
    for (format, parts) in without {
        let text = String::from_utf8(record(format, &Parts::good())).unwrap();
        for part in parts {
            assert!(text.contains(part), "{format:?} has {part}");
            let (reason, message) = refused(format, text.replace(part, "").as_bytes());
            assert_eq!(reason, Reason::Missing, "{format:?} without {part}: {message}");
        }
    }
    assert_eq!(refused(Format::InfluxLine, b"cpu,host=a").0, Reason::Syntax);
    assert_eq!(refused(Format::OtlpMetrics, b"{}").0, Reason::Missing);
}

#[test]
fn numbers_that_are_not_finite() {
    expect(Reason::NotFinite, "1e999", |format| {
        (format != Format::CloudEvents).then(|| record(format, &Parts { value: "1e999", ..Parts::good() }))
    });
    for word in ["NaN", "Infinity", "-Infinity"] {
        // JSON has no such words: bare they are no syntax, quoted OTLP knows them.
        for format in [Format::JsonMetrics, Format::JsonEvents, Format::CloudEvents, Format::OtlpMetrics] {
            let bare = record(format, &Parts { value: word, ..Parts::good() });
            assert_eq!(refused(format, &bare).0, Reason::Syntax, "{format:?} {word}");
        }
        let quoted = String::from_utf8(record(Format::OtlpMetrics, &Parts { value: "@", ..Parts::good() })).unwrap();
        let quoted = quoted.replace('@', &format!("{word:?}"));
        assert_eq!(refused(Format::OtlpMetrics, quoted.as_bytes()).0, Reason::NotFinite, "{word}");
    }
    for word in ["NaN", "inf", "-Inf"] {
        let line = record(Format::InfluxLine, &Parts { value: word, ..Parts::good() });
        assert_eq!(refused(Format::InfluxLine, &line).0, Reason::NotFinite, "{word}");
    }
    for value in [f64::NAN, f64::INFINITY] {
        assert_eq!(refused(Format::OtlpMetrics, &otlp(point(NOW_NANOS, value))).0, Reason::NotFinite);
    }
}

#[test]
fn times_out_of_bounds() {
    let times = [("1970-01-01T00:00:01Z", 1_000_000_000), ("2100-01-01T00:00:00Z", 4_102_444_800_000_000_000)];
    for (time, nanos) in times {
        expect(Reason::TimeRange, time, |format| Some(record(format, &Parts { time, nanos, ..Parts::good() })));
    }
    assert_eq!(refused(Format::OtlpMetrics, &otlp(point(1_000_000_000, 1.0))).0, Reason::TimeRange);
    assert_eq!(refused(Format::OtlpMetrics, &otlp(point(u64::MAX, 1.0))).0, Reason::TimeRange);
    assert_eq!(time(NOW).as_micros() as u64 * 1_000, NOW_NANOS);
}

#[test]
fn names_of_ten_kilobytes() {
    expect(Reason::TooLarge, "a long name", |format| {
        Some(record(format, &Parts { name: "n".repeat(10_000), ..Parts::good() }))
    });
    expect(Reason::TooLarge, "a long label", |format| {
        Some(record(format, &Parts { label: format!("\"{}\"", "x".repeat(10_000)), ..Parts::good() }))
    });
}

#[test]
fn nesting_of_ten_thousand() {
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    expect(Reason::TooLarge, "deep nesting", |format| match format {
        Format::InfluxLine => None,
        Format::OtlpMetrics => {
            let text = String::from_utf8(record(format, &Parts::good())).unwrap();
            Some(text.replacen('{', &format!(r#"{{"extra":{deep},"#), 1).into_bytes())
        }
        _ => Some(record(format, &Parts { label: deep.clone(), ..Parts::good() })),
    });
    expect(Reason::TooLarge, "nothing but nesting", |format| {
        (!matches!(format, Format::InfluxLine | Format::OtlpMetrics)).then(|| deep.clone().into_bytes())
    });
    // Written byte by byte: the generated encoder would overflow the stack on a value this deep.
    let mut value = vec![0x10, 1];
    for _ in 0..10_000 {
        value = field(0x2a, field(0x0a, value));
    }
    let attribute = [field(0x0a, b"a".to_vec()), field(0x12, value)].concat();
    let point = [point(NOW_NANOS, 1.0).encode_to_vec(), field(0x3a, attribute)].concat();
    let metric = [field(0x0a, b"m".to_vec()), field(0x2a, field(0x0a, point))].concat();
    let message = field(0x0a, field(0x12, field(0x12, metric)));
    let (reason, message) = refused(Format::OtlpMetrics, &message);
    assert_eq!(reason, Reason::TooLarge, "{message}");
}

#[test]
fn bytes_that_are_no_utf8() {
    expect(Reason::Encoding, "a broken character", |format| {
        let mut bytes = record(format, &Parts { name: "m@".into(), ..Parts::good() });
        let at = bytes.iter().position(|b| *b == b'@').unwrap();
        bytes[at] = 0xff;
        Some(bytes)
    });
    let mut bytes = otlp(point(NOW_NANOS, 1.0));
    let at = bytes.iter().position(|b| *b == b'm').unwrap();
    bytes[at] = 0xff;
    assert_eq!(refused(Format::OtlpMetrics, &bytes).0, Reason::Encoding);
}

#[test]
fn records_cut_off_anywhere() {
    for format in Format::ALL {
        let whole = record(format, &Parts::good());
        for len in 1..whole.len() {
            let mut bench = Bench::new(format);
            // A line cut inside its last number, or before its timestamp, is still a line.
            if bench.feed(&whole[..len]).is_ok() {
                assert_eq!(format, Format::InfluxLine);
            }
        }
        assert_eq!(refused(format, &whole[..whole.len() / 4]).0, Reason::Syntax, "{format:?}");
    }
    let whole = otlp(point(NOW_NANOS, 1.0));
    // The first byte alone is a line break, hence blank.
    for len in 2..whole.len() {
        assert_eq!(refused(Format::OtlpMetrics, &whole[..len]).0, Reason::Syntax, "{len}");
    }
}

#[test]
fn gzip() {
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 64]].concat();
    expect(Reason::Encoding, "gzip", |_| Some(gzip.clone()));
    assert!(refused(Format::JsonMetrics, &gzip).1.contains("gzip"));
}

#[test]
fn random_bytes() {
    let mut state = 7_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(4_096)
    .collect();
    for format in Format::ALL {
        for start in 0..512 {
            refused(format, &noise[start..]);
        }
    }
}

#[test]
fn an_error_page_instead_of_a_record() {
    for format in Format::ALL {
        let (reason, _) = refused(format, br#"{"error":"connection refused"}"#);
        assert!(matches!(reason, Reason::Missing | Reason::Syntax), "{format:?}: {reason:?}");
        refused(format, b"<html>502 Bad Gateway</html>");
    }
}

#[test]
fn more_than_the_limits() {
    let limits = Limits { points_per_record_max: 3, payload_bytes_max: 4_096, labels_max: 2, ..Limits::default() };
    for format in [Format::JsonMetrics, Format::JsonEvents, Format::CloudEvents, Format::InfluxLine] {
        let one = record(format, &Parts::good());
        let mut bench = Bench::limited(format, limits.clone(), 10);
        bench.feed(&[&one[..]; 3].join(&b'\n')).expect("three are within the limit");
        let reject = bench.feed(&[&one[..]; 4].join(&b'\n')).expect_err("four are not");
        assert_eq!(reject.reason, Reason::TooLarge, "{format:?}: {}", reject.message);
        let reject = bench.feed(&[b' '; 5_000]).expect_err("the payload is too large");
        assert_eq!(reject.reason, Reason::TooLarge);
    }
    let mut bench = Bench::limited(Format::InfluxLine, limits, 10);
    assert_eq!(bench.feed(b"m,a=1,b=2,c=3 value=1").unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn a_full_interner_refuses_new_series_only() {
    for format in [Format::JsonMetrics, Format::OtlpMetrics, Format::InfluxLine] {
        let mut bench = Bench::limited(format, Limits::default(), 1);
        let known = record(format, &Parts::good());
        bench.feed(&known).unwrap();
        let reject = bench.feed(&record(format, &Parts { name: "new".into(), ..Parts::good() })).unwrap_err();
        assert_eq!(reject.reason, Reason::Cardinality, "{format:?}: {}", reject.message);
        bench.feed(&known).unwrap();
        assert_eq!(bench.out.samples.len(), 2);
    }
}

/// One length-delimited protobuf field.
fn field(tag: u8, content: Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![tag];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A protobuf record of a length whose first bytes are those of a JSON text, a line break and a brace.
#[test]
fn protobuf_is_not_taken_for_json() {
    let mut bench = Bench::new(Format::OtlpMetrics);
    for pad in 0..200 {
        let mut point = point(NOW_NANOS, 1.0);
        point.attributes[0].key = "k".repeat(pad + 1);
        bench.feed(&otlp(point)).expect("every length is read as protobuf");
    }
}

fn point(nanos: u64, value: f64) -> NumberDataPoint {
    let attribute = KeyValue {
        key: "a".into(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue("x".into())) }),
        ..KeyValue::default()
    };
    NumberDataPoint {
        attributes: vec![attribute],
        time_unix_nano: nanos,
        value: Some(Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

fn otlp(point: NumberDataPoint) -> Vec<u8> {
    let gauge = Data::Gauge(Gauge { data_points: vec![point] });
    let metric = Metric { name: "m".into(), data: Some(gauge), ..Metric::default() };
    let scope = ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() };
    let resource = ResourceMetrics { scope_metrics: vec![scope], ..ResourceMetrics::default() };
    MetricsData { resource_metrics: vec![resource] }.encode_to_vec()
}
