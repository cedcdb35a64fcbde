//! Effects as Kafka records: what goes out on which topic, under which key, with which headers. Sends nothing.

use serde::Serialize;

use crate::kafka::sink::Outgoing;
use crate::model::alert::Alert;
use crate::model::decision::Decision;
use crate::model::finding::{Anomaly, Forecast};
use crate::model::id;
use crate::model::reject::Rejected;
use crate::model::time::EventTime;
use crate::store::columns::LateRow;

/// The `ce_source` of everything we say.
const SOURCE: &str = "bellwether";

/// A dead letter's value is cut to this, as brokers take about a million bytes in one record: one they refuse would stop all
/// effects. The table `rejected` keeps it whole.
const DEAD_LETTER_BYTES_MAX: usize = 768 << 10;
/// What its own headers and its key may take beside the value.
const HEADER_BYTES_MAX: usize = 128 << 10;
const KEY_BYTES_MAX: usize = 64 << 10;
const DEAD_LETTER_HEADERS_MAX: usize = 256;

/// The topics that effects go to.
#[derive(Clone, Debug)]
pub struct Topics {
    pub alerts: String,
    pub decisions: String,
    pub forecasts: String,
    pub anomalies: String,
}

/// CloudEvents attributes of a record.
struct Envelope<'a> {
    id: &'a str,
    kind: &'a str,
    at: EventTime,
    subject: &'a str,
}

fn record(topic: &str, key: &str, envelope: &Envelope<'_>, body: &impl Serialize) -> Outgoing {
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    Outgoing {
        topic: topic.to_owned(),
        key: key.as_bytes().to_vec(),
        payload: Some(serde_json::to_vec(body).expect("our own records are maps with text keys")),
        headers: vec![
            header("ce_specversion", "1.0"),
            header("ce_id", envelope.id),
            header("ce_type", envelope.kind),
            header("ce_source", SOURCE),
            header("ce_time", &envelope.at.to_string()),
            header("ce_subject", envelope.subject),
            header("content-type", "application/json"),
        ],
    }
}

pub fn alert(topics: &Topics, alert: &Alert) -> Outgoing {
    let kind = format!("bellwether.alert.{}", alert.state.as_str());
    let envelope = Envelope { id: &alert.id, kind: &kind, at: alert.at, subject: &alert.rule };
    record(&topics.alerts, &alert.fingerprint, &envelope, alert)
}

pub fn decision(topics: &Topics, decision: &Decision) -> Outgoing {
    let kind = match decision.abstention {
        None => "bellwether.decision.scale",
        Some(_) => "bellwether.decision.abstain",
    };
    let envelope = Envelope { id: &decision.id, kind, at: decision.at, subject: &decision.target };
    record(&topics.decisions, &decision.target, &envelope, decision)
}

pub fn anomaly(topics: &Topics, anomaly: &Anomaly) -> Outgoing {
    let track = anomaly.track.label();
    let envelope = Envelope { id: &anomaly.id, kind: "bellwether.anomaly", at: anomaly.at, subject: &track };
    record(&topics.anomalies, &track, &envelope, anomaly)
}

pub fn forecast(topics: &Topics, forecast: &Forecast) -> Outgoing {
    let track = forecast.track.label();
    let envelope = Envelope { id: &forecast.id, kind: "bellwether.forecast", at: forecast.issued_at, subject: &track };
    record(&topics.forecasts, &track, &envelope, forecast)
}

/// A row of a view, for views that ask for a topic. `key` are the values of its text columns.
pub fn view_row(topic: &str, view: &str, window_end: EventTime, key: &str, row: &serde_json::Value) -> Outgoing {
    let id = id::of_parts(["view", view, key, &window_end.as_micros().to_string()]);
    let kind = format!("bellwether.view.{view}");
    record(topic, key, &Envelope { id: &id, kind: &kind, at: window_end, subject: view }, row)
}

/// A row that came too late for a view, for views that ask for a topic of such. One record may hold several of a series.
pub fn late_row(topic: &str, row: &LateRow) -> Outgoing {
    let place = format!("{}/{}/{}", row.topic, row.partition, row.offset);
    let of = match (&row.event_id, row.series_id) {
        (Some(event), _) => event.clone(),
        (None, series) => format!("{}/{}", series.unwrap_or_default(), row.value.unwrap_or_default()),
    };
    let id = id::of_parts(["late", &row.view, &place, &row.ts.as_micros().to_string(), &of]);
    record(topic, &row.view, &Envelope { id: &id, kind: "bellwether.late", at: row.ts, subject: &row.view }, row)
}

/// A refused record: its own bytes, key and headers, with where it came from and why it was refused, under the names
/// Kafka Connect gave them.
pub fn dead_letter(topic: &str, rejected: &Rejected) -> Outgoing {
    const PREFIX: &str = "__connect.errors";
    let why = [
        ("topic", rejected.from.topic.clone()),
        ("partition", rejected.from.partition.to_string()),
        ("offset", rejected.from.offset.to_string()),
        ("exception.class.name", rejected.why.reason.as_str().to_owned()),
        ("exception.message", rejected.why.message.clone()),
    ];
    let (mut headers, mut left) = (Vec::new(), HEADER_BYTES_MAX);
    for (name, value) in &rejected.headers {
        let bytes = name.len() + value.as_ref().map_or(0, Vec::len);
        match left.checked_sub(bytes) {
            Some(rest) => {
                left = rest;
                headers.push((name.clone(), value.clone().unwrap_or_default()));
            }
            None => headers.push(("bellwether.header_left_out_bytes".to_owned(), bytes.to_string().into_bytes())),
        }
        if headers.len() > DEAD_LETTER_HEADERS_MAX {
            break;
        }
    }
    headers.extend(why.map(|(name, value)| (format!("{PREFIX}.{name}"), value.into_bytes())));
    let mut cut = |name: &str, bytes: &mut Vec<u8>, most: usize| {
        if bytes.len() > most {
            headers.push((format!("bellwether.{name}"), bytes.len().to_string().into_bytes()));
            bytes.truncate(most);
        }
    };
    let (mut key, mut payload) = (rejected.key.clone().unwrap_or_default(), rejected.value.clone());
    cut("key_truncated_from_bytes", &mut key, KEY_BYTES_MAX);
    if let Some(value) = &mut payload {
        cut("truncated_from_bytes", value, DEAD_LETTER_BYTES_MAX);
    }
    Outgoing { topic: topic.to_owned(), key, payload, headers }
}
