//! Tests of the decoders: golden files, the ways in which input goes wrong, and round trips.
//!
//! A new case is a new file under `tests/data/ingest/<format>/`: the input, `<case>.headers.json` where it has headers,
//! and `<case>.expected.json`, which `UPDATE_GOLDEN=1` writes.

mod bad;
mod files;
mod golden;
mod round_trip;

use serde_json::{Value as Json, json};

use super::{Bounds, Decoder, Format, Limits, Record, decoder};
use crate::model::batch::Decoded;
use crate::model::event::Event;
use crate::model::reject::Reject;
use crate::model::series::{Interner, SeriesRef};
use crate::model::time::EventTime;

/// The broker's time of every record here.
const ARRIVED: &str = "2026-03-01T12:00:00Z";

fn time(text: &str) -> EventTime {
    EventTime::parse_rfc3339(text).unwrap()
}

fn bounds() -> Bounds {
    Bounds { oldest: time("2026-02-01T00:00:00Z"), newest: time("2026-03-01T13:00:00Z") }
}

/// A decoder with what it fills.
struct Bench {
    decoder: Box<dyn Decoder>,
    interner: Interner,
    out: Decoded,
}

impl Bench {
    fn new(format: Format) -> Self {
        Bench::limited(format, Limits::default(), 10_000)
    }

    fn limited(format: Format, limits: Limits, series_max: usize) -> Self {
        Bench { decoder: decoder(format, limits), interner: Interner::new(series_max), out: Decoded::default() }
    }

    fn feed(&mut self, value: &[u8]) -> Result<(), Reject> {
        self.feed_with(value, &[])
    }

    fn feed_with(&mut self, value: &[u8], headers: &[(&str, &[u8])]) -> Result<(), Reject> {
        let record = Record { value, timestamp: time(ARRIVED), headers };
        self.decoder.decode(&record, bounds(), &mut self.interner, &mut self.out)
    }

    /// Returns all that was accepted, as in the golden files.
    fn seen(&self) -> Json {
        let samples = &self.out.samples;
        let samples = (0..samples.len()).map(|i| {
            let series = self.interner.get(SeriesRef(samples.series[i])).unwrap();
            let labels: serde_json::Map<String, Json> =
                series.labels().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            json!({
                "name": series.name,
                "labels": labels,
                "kind": series.kind,
                "unit": series.unit,
                "ts": EventTime::from_micros(samples.ts[i]),
                "value": samples.value[i],
            })
        });
        let samples: Vec<Json> = samples.collect();
        if samples.is_empty() {
            json!({ "events": self.out.events.iter().map(event).collect::<Vec<_>>() })
        } else {
            json!({ "samples": samples })
        }
    }
}

fn event(event: &Event) -> Json {
    json!({
        "ts": event.ts,
        "id": event.id,
        "source": event.source,
        "type": event.kind,
        "subject": event.subject,
        "outcome": event.outcome,
        "duration_ms": event.duration_ms,
        "severity": event.severity,
        "attributes": event.attributes,
        "data": event.data,
    })
}

fn outcome(format: Format, value: &[u8], headers: &[(&str, &[u8])]) -> Json {
    let mut bench = Bench::new(format);
    match bench.feed_with(value, headers) {
        Ok(()) => bench.seen(),
        Err(reject) => {
            assert!(bench.out.samples.is_empty() && bench.out.events.is_empty(), "a refused record must leave nothing");
            json!({ "reject": { "reason": reject.reason.as_str(), "message": reject.message } })
        }
    }
}

#[test]
fn words_of_formats_round_trip() {
    for format in Format::ALL {
        assert_eq!(Format::parse(format.as_str()), Some(format));
        assert_eq!(serde_json::to_value(format).unwrap(), json!(format.as_str()));
        assert_eq!(decoder(format, Limits::default()).wants_headers(), format == Format::CloudEvents);
    }
    assert_eq!(Format::parse("json"), None);
}

#[test]
fn limits_refuse_unknown_keys_and_fill_in_the_rest() {
    let limits: Limits = serde_json::from_value(json!({ "labels_max": 3 })).unwrap();
    assert_eq!(limits, Limits { labels_max: 3, ..Limits::default() });
    assert!(serde_json::from_value::<Limits>(json!({ "label_max": 3 })).is_err());
}
