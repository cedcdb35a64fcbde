//! Round trips: what is written in a format is read back equal, and no bytes make a decoder panic.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::{Bench, bounds};
use crate::ingest::Format;
use crate::model::event::Event;
use crate::model::series::{Kind, SeriesRef};
use crate::model::time::EventTime;

/// A sample spelled out.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    kind: Kind,
    ts: EventTime,
    value: f64,
}

fn read_back(bench: &Bench) -> Vec<Sample> {
    let samples = &bench.out.samples;
    let sample = |i: usize| {
        let series = bench.interner.get(SeriesRef(samples.series[i])).unwrap();
        Sample {
            name: series.name.to_string(),
            labels: series.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            kind: series.kind,
            ts: EventTime::from_micros(samples.ts[i]),
            value: samples.value[i],
        }
    };
    (0..samples.len()).map(sample).collect()
}

fn times() -> impl Strategy<Value = EventTime> {
    let bounds = bounds();
    (bounds.oldest.as_micros()..=bounds.newest.as_micros()).prop_map(EventTime::from_micros)
}

fn finite() -> impl Strategy<Value = f64> {
    prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO
}

/// Samples whose names and labels match the patterns. A series keeps the kind it was first seen with, so kinds follow
/// from names here.
fn samples(name: &'static str, label: &'static str, value: &'static str) -> impl Strategy<Value = Vec<Sample>> {
    let sample = (name, btree_map(label, value, 0..5), times(), finite()).prop_map(|(name, labels, ts, value)| {
        let kind = [Kind::Gauge, Kind::Counter, Kind::Delta][name.len() % 3];
        Sample { name, labels, kind, ts, value }
    });
    vec(sample, 1..12)
}

proptest! {
    #[test]
    fn json_metrics(samples in samples("\\PC{1,20}", "\\PC{1,9}", "\\PC{0,20}"), lines in any::<bool>()) {
        let items: Vec<_> = samples.iter().map(|s| json!({
            "ts": s.ts, "name": s.name, "labels": s.labels, "value": s.value, "kind": s.kind, "note": [null, {}],
        })).collect();
        let text = match lines {
            true => items.iter().map(|item| format!("{item}\n")).collect(),
            false => json!(items).to_string(),
        };
        let mut bench = Bench::new(Format::JsonMetrics);
        bench.feed(text.as_bytes()).unwrap();
        prop_assert_eq!(read_back(&bench), samples.clone());
        // Once more, now that every spelling is known.
        bench.out.clear();
        bench.feed(text.as_bytes()).unwrap();
        prop_assert_eq!(read_back(&bench), samples);
    }

    #[test]
    fn influx_line(samples in samples("[a-z ,=\\\\\"é]{0,9}[a-zé]", "[a-z ,=é]{0,9}[a-z]", "[a-z ,=\"é]{0,9}[a-z]")) {
        let samples: Vec<_> = samples.into_iter().map(|s| Sample { kind: Kind::Gauge, ..s }).collect();
        let escape = |text: &str, special: &str| text.chars().fold(String::new(), |mut out, c| {
            if special.contains(c) { out.push('\\') }
            out.push(c);
            out
        });
        let mut text = String::from("# a comment\n\n");
        for s in &samples {
            // A backslash before a character that can be escaped has no spelling of its own.
            let name = s.name.replace('\\', "/");
            text += &escape(&name, ", ");
            for (label, value) in &s.labels {
                text += &format!(",{}={}", escape(label, ", ="), escape(value, ", ="));
            }
            let nanos = i128::from(s.ts.as_micros()) * 1_000 + 999;
            text += &format!(" note=\"a,\\\" b=c\n\",value={:?} {nanos}\r\n", s.value);
        }
        let expected: Vec<_> = samples.into_iter().map(|s| Sample { name: s.name.replace('\\', "/"), ..s }).collect();
        let mut bench = Bench::new(Format::InfluxLine);
        bench.feed(text.as_bytes()).unwrap();
        prop_assert_eq!(read_back(&bench), expected);
    }

    #[test]
    fn otlp_metrics(
        samples in samples("[a-z]{1,4}_[a-z]{1,3}", "x[a-z]{1,6}", "\\PC{1,20}"),
        resource in btree_map("r[a-z]{1,6}", "\\PC{1,20}", 0..4),
    ) {
        let attributes = |labels: &BTreeMap<String, String>| labels.iter().map(|(key, value)| KeyValue {
            key: key.clone(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.clone())) }),
            ..KeyValue::default()
        }).collect::<Vec<_>>();
        let metrics = samples.iter().map(|s| {
            let data_points = vec![NumberDataPoint {
                attributes: attributes(&s.labels),
                time_unix_nano: s.ts.as_micros() as u64 * 1_000 + 999,
                value: Some(Value::AsDouble(s.value)),
                ..NumberDataPoint::default()
            }];
            let data = match s.kind {
                Kind::Gauge => Data::Gauge(Gauge { data_points }),
                kind => Data::Sum(Sum {
                    data_points, aggregation_temporality: if kind == Kind::Delta { 1 } else { 2 }, is_monotonic: true,
                }),
            };
            Metric { name: s.name.clone(), data: Some(data), ..Metric::default() }
        }).collect();
        let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
        let of = Resource { attributes: attributes(&resource), ..Resource::default() };
        let of = ResourceMetrics { resource: Some(of), scope_metrics, ..ResourceMetrics::default() };
        let resource_metrics = vec![of];
        let data = MetricsData { resource_metrics };
        let expected: Vec<_> = samples.into_iter().map(|s| Sample {
            name: if s.kind == Kind::Gauge { s.name } else { s.name + "_total" },
            labels: resource.clone().into_iter().chain(s.labels).collect(),
            ..s
        }).collect();
        for bytes in [data.encode_to_vec(), serde_json::to_vec(&data).unwrap()] {
            let mut bench = Bench::new(Format::OtlpMetrics);
            for _ in 0..2 {
                bench.out.clear();
                bench.feed(&bytes).unwrap();
                prop_assert_eq!(&read_back(&bench), &expected);
            }
        }
    }

    #[test]
    fn json_events(events in vec(events(), 1..8)) {
        let items: Vec<_> = events.iter().map(|e| json!({
            "ts": e.ts, "id": e.id, "source": e.source, "type": e.kind, "subject": e.subject, "outcome": e.outcome,
            "duration_ms": e.duration_ms, "severity": e.severity, "attributes": e.attributes,
            "data": e.data.as_ref().map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap()),
        })).collect();
        let mut bench = Bench::new(Format::JsonEvents);
        bench.feed(json!(items).to_string().as_bytes()).unwrap();
        prop_assert_eq!(&bench.out.events, &events);
    }

    #[test]
    fn cloud_events(event in events()) {
        let event = Event { outcome: None, duration_ms: None, severity: None, ..event };
        let ts = event.ts.to_string();
        let mut structured = json!({
            "specversion": "1.0", "id": event.id, "source": event.source, "type": event.kind, "subject": event.subject,
            "time": ts,
            "data": event.data.as_ref().map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap()),
        });
        let mut headers: Vec<(String, String)> = [
            ("ce_specversion", "1.0"), ("ce_id", &event.id), ("CE_source", &event.source), ("ce_type", &event.kind),
            ("ce_subject", &event.subject), ("ce_time", &ts), ("Content-Type", "application/json; charset=utf-8"),
        ].map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        for (name, value) in &event.attributes {
            structured[name] = json!(value);
            headers.push((format!("ce_{name}"), value.clone()));
        }
        let mut bench = Bench::new(Format::CloudEvents);
        let content_type: (&str, &[u8]) = ("content-type", b"application/cloudevents+json");
        bench.feed_with(structured.to_string().as_bytes(), &[content_type]).unwrap();
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        bench.feed_with(event.data.as_deref().unwrap_or_default().as_bytes(), &headers).unwrap();
        prop_assert_eq!(&bench.out.events, &vec![event.clone(), event]);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..300)) {
        for format in Format::ALL {
            drop(Bench::new(format).feed(&bytes));
            let headers: [(&str, &[u8]); 3] = [("ce_id", &bytes), ("ce_type", b"dev.cdevents.a.b.1"), ("ce_é", b"")];
            drop(Bench::new(format).feed_with(&bytes, &headers));
        }
    }

    #[test]
    fn no_near_miss_makes_a_decoder_panic(cuts in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        for (format, good) in near_misses() {
            let mut bytes = good.clone();
            for (place, byte) in &cuts {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            let mut bench = Bench::new(format);
            if bench.feed(&bytes).is_err() {
                prop_assert!(bench.out.samples.is_empty() && bench.out.events.is_empty());
            }
        }
    }
}

fn events() -> impl Strategy<Value = Event> {
    let words = ("\\PC{1,12}", "\\PC{1,12}", "\\PC{1,20}", "\\PC{1,12}");
    let data = prop::option::of("\\PC{0,20}".prop_map(|text| json!({ "text": text, "n": [1, 2.5] }).to_string()));
    let rest = (prop::option::of("[a-z]{1,9}"), prop::option::of(0.0..1e9), prop::option::of("[a-z]{1,9}"), data);
    (words, times(), rest, btree_map("ext[a-z0-9]{0,9}", "\\PC{0,20}", 0..4)).prop_map(
        |((id, source, kind, subject), ts, (outcome, duration_ms, severity, data), attributes)| Event {
            ts,
            id,
            source,
            kind,
            subject,
            outcome,
            duration_ms,
            severity,
            attributes,
            data,
        },
    )
}

/// One good record of each format, to be spoilt.
fn near_misses() -> Vec<(Format, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ingest");
    let read = |path: &str| std::fs::read(folder.join(path)).unwrap();
    let otlp = read("otlp_metrics/all_kinds.json");
    let protobuf = serde_json::from_slice::<MetricsData>(&otlp).unwrap().encode_to_vec();
    vec![
        (Format::JsonMetrics, read("json_metrics/array.json")),
        (Format::JsonEvents, read("json_events/full.json")),
        (Format::CloudEvents, read("cloudevents/taskrun_finished.json")),
        (Format::OtlpMetrics, otlp),
        (Format::OtlpMetrics, protobuf),
        (Format::InfluxLine, read("influx_line/telegraf.lp")),
    ]
}
