//! JSON events: `{"ts", "id", "source", "type", "subject", "outcome", "duration_ms", "severity", "attributes",
//! "data"}`, an array of them, or one per line. `type` and `subject` must be there; keys not named here are ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::intake::{Intake, missing, text};
use super::json::{self, Entries, Stamp, Text};
use super::{Parser, Record};
use crate::model::event::Event;
use crate::model::id;
use crate::model::reject::Reject;
use crate::model::time::EventTime;

pub(super) struct JsonEvents;

impl Parser for JsonEvents {
    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let text = text(record.value)?;
        let mut ids = Ids { text, of_record: None, next: 0 };
        json::each(text, intake.limits, |raw: Raw<'_>| {
            let event = raw.event(record.timestamp, &mut ids)?;
            intake.event(event)
        })
    }
}

/// Reads attributes: scalars as their text, `null` as absent.
pub(super) fn attributes(raw: &RawValue) -> Result<BTreeMap<String, String>, Reject> {
    let mut attributes = BTreeMap::new();
    for (name, value) in Entries::of("attributes", raw)?.0 {
        if let Some(text) = json::scalar(&name, value)? {
            attributes.insert(name.into_owned(), text.into_owned());
        }
    }
    Ok(attributes)
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(alias = "timestamp", alias = "time")]
    ts: Option<Stamp>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    source: Option<Text<'a>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    subject: Option<Text<'a>>,
    #[serde(borrow)]
    outcome: Option<Text<'a>>,
    #[serde(borrow)]
    duration_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    severity: Option<Text<'a>>,
    #[serde(borrow)]
    attributes: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Raw<'_> {
    fn event(self, arrived: EventTime, ids: &mut Ids<'_>) -> Result<Event, Reject> {
        let fallback = ids.next();
        let given = |text: Option<Text<'_>>| text.map(|text| text.0.into_owned()).filter(|text| !text.is_empty());
        Ok(Event {
            ts: self.ts.map_or(arrived, |stamp| stamp.0),
            id: given(self.id).unwrap_or_else(|| ids.of(fallback)),
            source: given(self.source).unwrap_or_default(),
            kind: given(self.kind).ok_or_else(|| missing("type"))?,
            subject: given(self.subject).ok_or_else(|| missing("subject"))?,
            outcome: given(self.outcome),
            duration_ms: self.duration_ms.map(|raw| json::number("duration_ms", raw)).transpose()?,
            severity: given(self.severity),
            attributes: self.attributes.map(attributes).transpose()?.unwrap_or_default(),
            data: self.data.map(|raw| raw.get().to_owned()),
        })
    }
}

/// Ids for events that bring none: of the record's bytes and the event's place in it, so that a record read twice gives
/// the same ids. The bytes are hashed once, however many events ask.
struct Ids<'a> {
    text: &'a str,
    of_record: Option<String>,
    next: usize,
}

impl Ids<'_> {
    fn next(&mut self) -> usize {
        let index = self.next;
        self.next += 1;
        index
    }

    fn of(&mut self, index: usize) -> String {
        let record = self.of_record.get_or_insert_with(|| id::of_parts(["record", self.text]));
        id::of_parts(["event", record, &index.to_string()])
    }
}
