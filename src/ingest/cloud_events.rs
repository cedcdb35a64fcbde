//! CloudEvents 1.x over Kafka: structured (`content-type: application/cloudevents+json`), batch
//! (`application/cloudevents-batch+json`) and binary (`ce_*` headers, the value being the data).
//!
//! Follows the CloudEvents Kafka protocol binding. A record with neither header is read as structured where its body
//! carries `specversion`. Extension attributes become attributes of the event. The data of CDEvents is mapped in
//! [`cdevents`](super::cdevents); of any other data, `outcome`, `duration_ms` and `severity` at its top are lifted
//! where they have the right type, and are left alone where not, for foreign data owes us nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::cdevents;
use super::intake::{Intake, clip, missing, refuse, text};
use super::json::{self, Entries};
use super::{Limits, Parser, Record};
use crate::model::event::Event;
use crate::model::reject::{Reason, Reject};
use crate::model::time::EventTime;

pub(super) struct CloudEvents;

impl Parser for CloudEvents {
    const WANTS_HEADERS: bool = true;

    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        if is_binary(record.headers) {
            let event = binary(record, intake.limits)?;
            return intake.event(event);
        }
        let text = text(record.value)?;
        json::each(text, intake.limits, |envelope: Entries<'_>| {
            let event = structured(&envelope, record.timestamp)?;
            intake.event(event)
        })
    }
}

/// The context attributes of one event, wherever they stood.
#[derive(Default)]
struct Context<'a> {
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    extensions: BTreeMap<String, String>,
}

impl<'a> Context<'a> {
    /// Takes one attribute. Those that describe the data only are dropped with it read.
    fn set(&mut self, name: &str, value: Cow<'a, str>) {
        let slot = match name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "datacontenttype" | "dataschema" => return,
            _ => {
                self.extensions.insert(name.to_owned(), value.into_owned());
                return;
            }
        };
        *slot = Some(value);
    }

    /// Makes the event of its attributes and its data, which is JSON text.
    fn event(self, data: Option<Cow<'_, str>>, arrived: EventTime) -> Result<Event, Reject> {
        let needed = |field: &str, value: Option<Cow<'_, str>>| {
            value.filter(|text| !text.is_empty()).map(Cow::into_owned).ok_or_else(|| missing(field))
        };
        let version = needed("specversion", self.specversion)?;
        if !version.starts_with("1.") {
            return Err(refuse(Reason::Unsupported, "specversion", "1.x", &version));
        }
        let ts = match &self.time {
            Some(time) => EventTime::parse_rfc3339(time)
                .ok_or_else(|| refuse(Reason::Type, "time", "an RFC 3339 time", &format!("{time:?}")))?,
            None => arrived,
        };
        let mut event = Event {
            ts,
            id: needed("id", self.id)?,
            source: needed("source", self.source)?,
            kind: needed("type", self.kind)?,
            subject: self.subject.map(Cow::into_owned).unwrap_or_default(),
            attributes: self.extensions,
            data: data.map(Cow::into_owned),
            ..Event::default()
        };
        if cdevents::is_cdevent(&event.kind) {
            cdevents::fill(&mut event, self.time.is_some())?;
        } else {
            lift(&mut event);
        }
        Ok(event)
    }
}

/// Says whether the attributes stand in the headers: `content-type` decides, and without it any `ce_` header.
fn is_binary(headers: &[(&str, &[u8])]) -> bool {
    let structured = header(headers, "content-type").is_some_and(|value| {
        value.get(.."application/cloudevents".len()).is_some_and(|v| v.eq_ignore_ascii_case(b"application/cloudevents"))
    });
    !structured && headers.iter().any(|(name, _)| attribute_of(name).is_some())
}

fn header<'a>(headers: &[(&str, &'a [u8])], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
}

/// Returns the attribute a header carries.
fn attribute_of(header: &str) -> Option<&str> {
    let prefix = header.get(..3)?;
    prefix.eq_ignore_ascii_case("ce_").then(|| header.get(3..)).flatten()
}

fn binary(record: &Record<'_>, limits: &Limits) -> Result<Event, Reject> {
    let mut context = Context::default();
    for (name, value) in record.headers {
        let Some(attribute) = attribute_of(name) else { continue };
        let value = std::str::from_utf8(value)
            .map_err(|_| Reject::new(Reason::Encoding, format!("header {}: expected UTF-8 text", clip(name))))?;
        context.set(&attribute.to_ascii_lowercase(), Cow::Borrowed(value));
    }
    let data = match record.value {
        [] => None,
        value if is_json(header(record.headers, "content-type")) => {
            let text = text(value)?;
            json::shallow(text, limits.depth_max)?;
            let raw: &RawValue = serde_json::from_str(text)
                .map_err(|error| Reject::new(Reason::Syntax, format!("data: {}", clip(&error.to_string()))))?;
            Some(Cow::Borrowed(raw.get()))
        }
        value => Some(Cow::Owned(serde_json::Value::from(text(value)?).to_string())),
    };
    context.event(data, record.timestamp)
}

/// Says whether data of this content type is JSON; without a type it is taken to be.
fn is_json(content_type: Option<&[u8]>) -> bool {
    let Some(content_type) = content_type else { return true };
    let media = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    media.ends_with(b"/json") || media.ends_with(b"+json")
}

fn structured(envelope: &Entries<'_>, arrived: EventTime) -> Result<Event, Reject> {
    let mut context = Context::default();
    let mut data = None;
    for (name, raw) in &envelope.0 {
        match &**name {
            "data" => data = Some(Cow::Borrowed(raw.get())).filter(|text| text != "null"),
            "data_base64" => data = Some(Cow::Borrowed(raw.get())),
            "specversion" | "id" | "source" | "type" | "subject" | "time" => {
                if raw.get() != "null" {
                    context.set(name, json::string(name, raw)?);
                }
            }
            _ => {
                if let Some(text) = json::scalar(name, raw)? {
                    context.set(name, text);
                }
            }
        }
    }
    context.event(data, arrived)
}

fn lift(event: &mut Event) {
    let Some(data) = event.data.as_deref().filter(|data| data.starts_with('{')) else { return };
    let Ok(entries) = serde_json::from_str::<Entries<'_>>(data) else { return };
    let word = |name| entries.get(name).and_then(|raw| json::string(name, raw).ok()).map(Cow::into_owned);
    let (outcome, severity) = (word("outcome"), word("severity"));
    let duration = entries.get("duration_ms").and_then(|raw| json::number("duration_ms", raw).ok());
    event.outcome = outcome;
    event.severity = severity;
    event.duration_ms = duration.filter(|ms| ms.is_finite() && *ms >= 0.0);
}
