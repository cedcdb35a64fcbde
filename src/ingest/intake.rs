//! The gate every row passes on its way out of a decoder: limits, time bounds, finiteness, interning.
//!
//! Knows no format. A refusal made here says what was expected and what came; the parser puts the place in front
//! with [`at`].

use std::fmt::Display;

use xxhash_rust::xxh3::xxh3_128;

use super::{Bounds, Limits};
use crate::model::batch::Decoded;
use crate::model::event::Event;
use crate::model::reject::{Reason, Reject};
use crate::model::series::{Descriptor, InternError, Interner, SeriesRef};
use crate::model::time::EventTime;

/// Takes the rows of one record.
pub(super) struct Intake<'a> {
    pub limits: &'a Limits,
    bounds: Bounds,
    interner: &'a mut Interner,
    out: &'a mut Decoded,
    points_left: usize,
}

impl<'a> Intake<'a> {
    pub fn new(limits: &'a Limits, bounds: Bounds, interner: &'a mut Interner, out: &'a mut Decoded) -> Self {
        Intake { limits, bounds, interner, out, points_left: limits.points_per_record_max }
    }

    /// Takes one sample.
    pub fn sample(&mut self, series: SeriesRef, at: EventTime, value: f64) -> Result<(), Reject> {
        if !value.is_finite() {
            return Err(Reject::new(Reason::NotFinite, format!("expected a finite value, got {value}")));
        }
        self.admit(at)?;
        self.out.samples.push(series, at, value);
        Ok(())
    }

    /// Takes one event.
    pub fn event(&mut self, event: Event) -> Result<(), Reject> {
        let limits = self.limits;
        fits("type", &event.kind, limits.name_bytes_max)?;
        let texts = [
            ("id", event.id.as_str()),
            ("source", &event.source),
            ("subject", &event.subject),
            ("outcome", event.outcome.as_deref().unwrap_or_default()),
            ("severity", event.severity.as_deref().unwrap_or_default()),
        ];
        for (field, text) in texts {
            fits(field, text, limits.label_value_bytes_max)?;
        }
        few("attributes", event.attributes.len(), limits.labels_max)?;
        for (name, value) in &event.attributes {
            fits("attribute name", name, limits.label_name_bytes_max)?;
            fits("attribute value", value, limits.label_value_bytes_max)?;
        }
        if let Some(ms) = event.duration_ms.filter(|ms| !(ms.is_finite() && *ms >= 0.0)) {
            let reason = if ms.is_finite() { Reason::Unsupported } else { Reason::NotFinite };
            return Err(Reject::new(reason, format!("duration_ms: expected a finite number of at least 0, got {ms}")));
        }
        self.admit(event.ts)?;
        self.out.events.push(event);
        Ok(())
    }

    /// Returns the series remembered under a spelling.
    pub fn recall(&self, spelling: u128) -> Option<SeriesRef> {
        self.interner.recall(spelling)
    }

    /// Checks a series against the limits, interns it, and remembers its spelling.
    pub fn intern(&mut self, spelling: u128, descriptor: &mut Descriptor<'_>) -> Result<SeriesRef, Reject> {
        let limits = self.limits;
        fits("name", descriptor.name, limits.name_bytes_max)?;
        fits("unit", descriptor.unit, limits.label_name_bytes_max)?;
        few("labels", descriptor.labels.len(), limits.labels_max)?;
        for (name, value) in &descriptor.labels {
            fits("label name", name, limits.label_name_bytes_max)?;
            fits("label value", value, limits.label_value_bytes_max)?;
        }
        let series = self.interner.intern(descriptor).map_err(|error| {
            let reason = match error {
                InternError::Full { .. } | InternError::Collision { .. } => Reason::Cardinality,
                InternError::EmptyName => Reason::Missing,
                InternError::DuplicateLabel { .. } => Reason::Syntax,
            };
            Reject::new(reason, error.to_string())
        })?;
        self.interner.remember(spelling, series);
        Ok(series)
    }

    fn admit(&mut self, at: EventTime) -> Result<(), Reject> {
        let Bounds { oldest, newest } = self.bounds;
        if at < oldest || newest < at {
            let message = format!("expected a time from {oldest} to {newest}, got {at}");
            return Err(Reject::new(Reason::TimeRange, message));
        }
        let max = self.limits.points_per_record_max;
        self.points_left = self.points_left.checked_sub(1).ok_or_else(|| {
            Reject::new(Reason::TooLarge, format!("expected at most {max} points in one record, got more"))
        })?;
        Ok(())
    }
}

/// The bytes that spell a series, gathered so that one hash tells whether they were seen before.
#[derive(Default)]
pub(super) struct Spelling(Vec<u8>);

impl Spelling {
    /// Starts anew. The tag keeps apart what different formats, or shapes within one, would spell alike.
    pub fn start(&mut self, tag: u8) -> &mut Self {
        self.0.clear();
        self.0.push(tag);
        self
    }

    /// Adds one part, preceded by its length so that the border between parts counts.
    pub fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub fn hash(&self) -> u128 {
        xxh3_128(&self.0)
    }
}

/// Returns the payload as text, whole: not empty, and UTF-8 throughout.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Reject> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let message = "expected text, got gzip; compress through the producer's compression.type instead";
        return Err(Reject::new(Reason::Encoding, message));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let byte = bytes.get(at).copied().unwrap_or_default();
        Reject::new(Reason::Encoding, format!("byte {at}: expected UTF-8 text, got 0x{byte:02x}"))
    })?;
    if text.bytes().all(|b| b.is_ascii_whitespace()) {
        return Err(Reject::new(Reason::Empty, "expected a record with a value, got none"));
    }
    Ok(text)
}

/// Puts the place of a refusal in front of its message.
pub(super) fn at(place: impl Display) -> impl FnOnce(Reject) -> Reject {
    move |reject| Reject::new(reject.reason, format!("{place}: {}", reject.message))
}

/// Returns a refusal of one field, with what came instead of what was expected.
pub(super) fn refuse(reason: Reason, field: &str, expected: &str, got: &str) -> Reject {
    Reject::new(reason, format!("{field}: expected {expected}, got {}", clip(got)))
}

/// Returns the refusal of a record that lacks a field.
pub(super) fn missing(field: &str) -> Reject {
    Reject::new(Reason::Missing, format!("{field}: expected a value, got none"))
}

/// Returns the text cut to a length that fits a message, and on one line.
pub(super) fn clip(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut rest = text.chars();
    let mut clipped: String = rest.by_ref().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if rest.next().is_some() {
        clipped.push('…');
    }
    clipped
}

fn fits(what: &str, text: &str, max: usize) -> Result<(), Reject> {
    if text.len() <= max {
        return Ok(());
    }
    let message = format!("{what}: expected at most {max} bytes, got {}: {:?}", text.len(), clip(text));
    Err(Reject::new(Reason::TooLarge, message))
}

fn few(what: &str, got: usize, max: usize) -> Result<(), Reject> {
    if got <= max {
        return Ok(());
    }
    Err(Reject::new(Reason::TooLarge, format!("{what}: expected at most {max}, got {got}")))
}
