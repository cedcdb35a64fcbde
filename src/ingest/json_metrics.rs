//! JSON metrics: `{"ts", "name", "labels", "value", "kind", "unit"}`, an array of them, or one per line.
//!
//! Two foreign spellings are told by their keys: Telegraf's (`fields` and `tags`, or a batch under `metrics`), and that
//! of prometheus-kafka-adapter (`timestamp`, the value as a string, the name once more as label `__name__`). A record
//! whose spelling was seen before costs no parsing of labels; nothing here may allocate on that path.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::intake::{Intake, Spelling, missing, refuse, text};
use super::json::{self, Entries, Stamp, Text};
use super::{Parser, Record};
use crate::model::reject::{Reason, Reject};
use crate::model::series::{Descriptor, Kind, SeriesRef};
use crate::model::time::EventTime;

#[derive(Default)]
pub(super) struct JsonMetrics {
    spelling: Spelling,
}

impl Parser for JsonMetrics {
    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let text = text(record.value)?;
        let limits = intake.limits;
        json::each(text, limits, |point: Point<'_>| match point.metrics {
            None => self.point(&point, record.timestamp, intake),
            Some(batch) => json::each(batch.get(), limits, |point| self.point(&point, record.timestamp, intake)),
        })
    }
}

/// One object. Labels, fields and the value stay unread until it is known that they must be read.
#[derive(Deserialize)]
struct Point<'a> {
    ts: Option<Stamp>,
    timestamp: Option<Stamp>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    labels: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    unit: Option<Text<'a>>,
    #[serde(borrow)]
    tags: Option<&'a RawValue>,
    #[serde(borrow)]
    fields: Option<&'a RawValue>,
    #[serde(borrow)]
    metrics: Option<&'a RawValue>,
}

impl Point<'_> {
    /// Returns the value. A string is taken only beside `timestamp`, as prometheus-kafka-adapter writes both.
    fn value(&self) -> Result<f64, Reject> {
        let raw = self.value.ok_or_else(|| missing("value"))?;
        if self.timestamp.is_some() && raw.get().starts_with('"') {
            let text = json::string("value", raw)?;
            return text.parse().map_err(|_| refuse(Reason::Type, "value", "a number in a string", &text));
        }
        json::number("value", raw)
    }
}

impl JsonMetrics {
    const OWN: u8 = b'j';
    const TELEGRAF: u8 = b't';

    fn point(&mut self, point: &Point<'_>, arrived: EventTime, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let at = point.ts.or(point.timestamp).map_or(arrived, |stamp| stamp.0);
        let name = point.name.as_deref().filter(|name| !name.is_empty()).ok_or_else(|| missing("name"))?;
        match point.fields {
            Some(fields) => self.fields(name, point.tags, fields, at, intake),
            None => {
                let value = point.value()?;
                let series = self.series(name, point, intake)?;
                intake.sample(series, at, value)
            }
        }
    }

    fn series(&mut self, name: &str, point: &Point<'_>, intake: &mut Intake<'_>) -> Result<SeriesRef, Reject> {
        let labels = point.labels.map_or("", RawValue::get);
        let kind = point.kind.as_deref().unwrap_or_default();
        let unit = point.unit.as_deref().unwrap_or_default();
        let spelling = self.spelling.start(Self::OWN);
        spelling.part(name.as_bytes()).part(labels.as_bytes()).part(kind.as_bytes()).part(unit.as_bytes());
        let spelling = spelling.hash();
        if let Some(series) = intake.recall(spelling) {
            return Ok(series);
        }
        let kind = match kind {
            "" => Kind::default(),
            word => {
                Kind::parse(word).ok_or_else(|| refuse(Reason::Unsupported, "kind", "gauge, counter or delta", word))?
            }
        };
        describe(spelling, name, point.labels, kind, unit, intake)
    }

    /// Takes Telegraf's fields: every number or bool becomes a sample of `<name>_<field>`, or of `<name>` where the
    /// field is called `value`; strings are skipped.
    fn fields(
        &mut self,
        name: &str,
        tags: Option<&RawValue>,
        fields: &RawValue,
        at: EventTime,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        for (field, raw) in Entries::of("fields", fields)?.0 {
            let value = match raw.get().as_bytes().first() {
                Some(b'"' | b'n') | None => continue,
                Some(b't') => 1.0,
                Some(b'f') => 0.0,
                Some(_) => json::number(&field, raw)?,
            };
            let spelling = self.spelling.start(Self::TELEGRAF).part(name.as_bytes()).part(field.as_bytes());
            let spelling = spelling.part(tags.map_or("", RawValue::get).as_bytes()).hash();
            let series = match intake.recall(spelling) {
                Some(series) => series,
                None if field == "value" => describe(spelling, name, tags, Kind::Gauge, "", intake)?,
                None => describe(spelling, &format!("{name}_{field}"), tags, Kind::Gauge, "", intake)?,
            };
            intake.sample(series, at, value)?;
        }
        Ok(())
    }
}

/// Reads the labels of a series not seen before, and interns it.
fn describe(
    spelling: u128,
    name: &str,
    labels: Option<&RawValue>,
    kind: Kind,
    unit: &str,
    intake: &mut Intake<'_>,
) -> Result<SeriesRef, Reject> {
    let entries = match labels {
        Some(labels) => Entries::of("labels", labels)?.0,
        None => Vec::new(),
    };
    let mut texts = Vec::with_capacity(entries.len());
    for (label, raw) in &entries {
        if label == "__name__" {
            continue;
        }
        if let Some(value) = json::scalar(label, raw)? {
            texts.push((&**label, value));
        }
    }
    let labels = texts.iter().map(|(label, value)| (*label, &**value)).collect();
    intake.intern(spelling, &mut Descriptor { name, labels, kind, unit })
}
