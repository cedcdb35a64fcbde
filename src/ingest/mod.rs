//! Bytes to samples and events: one small pure decoder per format.
//!
//! A decoder never reads the clock, does no I/O and keeps nothing of a record but what the [`Interner`] keeps. A record
//! is accepted whole or refused whole, and whatever the bytes are, the answer is rows or a [`Reject`], never a panic.

mod cdevents;
mod cloud_events;
mod exposition;
mod influx;
mod intake;
mod json;
mod json_events;
mod json_metrics;
mod otlp;
pub mod tabular;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::batch::Decoded;
use crate::model::reject::{Reason, Reject};
use crate::model::series::Interner;
use crate::model::time::EventTime;

use intake::Intake;

/// The formats a topic can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object per sample, an array of them, or one per line; also Telegraf's JSON and that of
    /// prometheus-kafka-adapter.
    JsonMetrics,
    /// One JSON object per event, an array of them, or one per line.
    JsonEvents,
    #[serde(rename = "cloudevents")]
    /// CloudEvents 1.x in structured, batch or binary mode; CDEvents are understood.
    CloudEvents,
    /// OpenTelemetry `MetricsData`, protobuf or JSON, told apart by the first byte.
    OtlpMetrics,
    /// Influx line protocol, timestamps in nanoseconds.
    InfluxLine,
}

/// Which table a format fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feeds {
    Samples,
    Events,
}

impl Format {
    pub const ALL: [Format; 5] =
        [Format::JsonMetrics, Format::JsonEvents, Format::CloudEvents, Format::OtlpMetrics, Format::InfluxLine];

    /// Returns the word for the format in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::JsonMetrics => "json_metrics",
            Format::JsonEvents => "json_events",
            Format::CloudEvents => "cloudevents",
            Format::OtlpMetrics => "otlp_metrics",
            Format::InfluxLine => "influx_line",
        }
    }

    /// Reads the word for a format; `None` where there is no such format.
    pub fn parse(text: &str) -> Option<Self> {
        Format::ALL.into_iter().find(|format| format.as_str() == text)
    }

    /// Returns the table that records of this format fill.
    pub fn feeds(self) -> Feeds {
        match self {
            Format::JsonMetrics | Format::OtlpMetrics | Format::InfluxLine => Feeds::Samples,
            Format::JsonEvents | Format::CloudEvents => Feeds::Events,
        }
    }
}

/// How large the parts of one record may be. A record over any of them is refused as too large.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a metric's name or an event's type.
    pub name_bytes_max: usize,
    /// Labels of a series, or attributes of an event.
    pub labels_max: usize,
    /// Bytes of a label's or attribute's name, or of a unit.
    pub label_name_bytes_max: usize,
    /// Bytes of a label's or attribute's value, or of an event's id, source, subject, outcome or severity.
    pub label_value_bytes_max: usize,
    /// Bytes of a whole record.
    pub payload_bytes_max: usize,
    /// Levels of nesting in JSON and in OpenTelemetry attribute values. The JSON reader itself stops short of 128.
    pub depth_max: usize,
    /// Samples or events that one record may yield.
    pub points_per_record_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            name_bytes_max: 512,
            labels_max: 64,
            label_name_bytes_max: 256,
            label_value_bytes_max: 4096,
            payload_bytes_max: 4 * 1024 * 1024,
            depth_max: 64,
            points_per_record_max: 100_000,
        }
    }
}

/// The span of event times accepted, both ends inclusive; set from the arrival clock by `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub oldest: EventTime,
    pub newest: EventTime,
}

/// One record as it came from the broker.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub value: &'a [u8],
    /// The broker's time of the record, which stands in where a point carries none.
    pub timestamp: EventTime,
    /// Empty unless the decoder wants headers.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// Reads the records of one format.
pub trait Decoder: Send {
    /// Appends what the record holds to `out`.
    ///
    /// # Errors
    /// A [`Reject`] that says where, what was expected and what came. `out` is then as it was before the call; the
    /// interner may have learnt series of the refused record.
    fn decode(
        &mut self,
        record: &Record<'_>,
        bounds: Bounds,
        interner: &mut Interner,
        out: &mut Decoded,
    ) -> Result<(), Reject>;

    /// Says whether records must be handed over with their headers.
    fn wants_headers(&self) -> bool {
        false
    }
}

/// Returns a decoder of the format.
pub fn decoder(format: Format, limits: Limits) -> Box<dyn Decoder> {
    match format {
        Format::JsonMetrics => Box::new(Whole { limits, parser: json_metrics::JsonMetrics::default() }),
        Format::JsonEvents => Box::new(Whole { limits, parser: json_events::JsonEvents }),
        Format::CloudEvents => Box::new(Whole { limits, parser: cloud_events::CloudEvents }),
        Format::OtlpMetrics => Box::new(Whole { limits, parser: otlp::Otlp::default() }),
        Format::InfluxLine => Box::new(Whole { limits, parser: influx::Influx::default() }),
    }
}

/// Returns a reader of the text formats of Prometheus and OpenMetrics, for which each line of a file is a record.
pub fn exposition(limits: Limits) -> Box<dyn Decoder> {
    Box::new(Whole { limits, parser: exposition::Exposition::default() })
}

/// The part of a decoder that differs from format to format.
trait Parser: Send {
    const WANTS_HEADERS: bool = false;

    /// Reads a record of at most `payload_bytes_max` bytes into the intake.
    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject>;
}

/// Makes a decoder of a parser: checks the size, and takes back what a refused record has left.
struct Whole<P> {
    limits: Limits,
    parser: P,
}

impl<P: Parser> Decoder for Whole<P> {
    fn decode(
        &mut self,
        record: &Record<'_>,
        bounds: Bounds,
        interner: &mut Interner,
        out: &mut Decoded,
    ) -> Result<(), Reject> {
        let (got, max) = (record.value.len(), self.limits.payload_bytes_max);
        if got > max {
            return Err(Reject::new(Reason::TooLarge, format!("expected a record of at most {max} bytes, got {got}")));
        }
        let mark = out.mark();
        let mut intake = Intake::new(&self.limits, bounds, interner, out);
        let outcome = self.parser.parse(record, &mut intake);
        if outcome.is_err() {
            out.rewind(mark);
        }
        outcome
    }

    fn wants_headers(&self) -> bool {
        P::WANTS_HEADERS
    }
}
