//! CDEvents (`dev.cdevents.<subject>.<predicate>.<version>`): which part of their data fills which column of an event.
//!
//! The mapping is [`TABLE`] and nothing else. Paths are those of the CDEvents specification, from its first to its
//! current version (`content` moved names rarely, and where it did both are listed). The whole data stays in `data`.

use serde_json::Value;

use super::intake::{missing, refuse};
use crate::model::event::Event;
use crate::model::reject::{Reason, Reject};
use crate::model::time::EventTime;

const PREFIX: &str = "dev.cdevents.";

/// How events about one kind of subject are read.
struct Row {
    /// The `<subject>` of the type.
    subject: &'static str,
    /// Where the name of the subject stands, first match; `subject.id` where none does. A run is named by what runs,
    /// so that its history can be grouped; the id of the run itself is kept as attribute `run`.
    name: &'static [&'static str],
    /// Attributes and where they stand.
    attributes: &'static [(&'static str, &'static str)],
}

const RUN: &[(&str, &str)] = &[
    ("run", "/subject/id"),
    ("pipeline_run", "/subject/content/pipelineRun/id"),
    ("environment", "/subject/content/environment/id"),
    ("errors", "/subject/content/errors"),
    ("url", "/subject/content/url"),
    ("url", "/subject/content/uri"),
];

const DEPLOYED: &[(&str, &str)] = &[
    ("environment", "/subject/content/environment/id"),
    ("artifact", "/subject/content/artifactId"),
    ("service", "/subject/content/service/id"),
    ("description", "/subject/content/description"),
    ("ticket", "/subject/content/ticketURI"),
];

const NAMED: &[(&str, &str)] = &[
    ("subject_id", "/subject/id"),
    ("url", "/subject/content/url"),
    ("url", "/subject/content/uri"),
    ("environment", "/subject/content/environment/id"),
    ("pipeline_run", "/subject/content/pipelineRun/id"),
    ("approver", "/subject/content/approver"),
];

const TABLE: &[Row] = &[
    Row { subject: "pipelinerun", name: &["/subject/content/pipelineName"], attributes: RUN },
    Row { subject: "taskrun", name: &["/subject/content/taskName"], attributes: RUN },
    Row {
        subject: "testcaserun",
        name: &["/subject/content/testCase/name", "/subject/content/testCase/id"],
        attributes: RUN,
    },
    Row {
        subject: "testsuiterun",
        name: &["/subject/content/testSuite/name", "/subject/content/testSuite/id"],
        attributes: RUN,
    },
    Row { subject: "build", name: &[], attributes: DEPLOYED },
    Row { subject: "service", name: &[], attributes: DEPLOYED },
    Row { subject: "incident", name: &[], attributes: DEPLOYED },
    Row { subject: "environment", name: &["/subject/content/name"], attributes: NAMED },
    Row { subject: "approval", name: &["/subject/content/name"], attributes: NAMED },
];

/// How events about any other subject are read.
const OTHER: Row = Row { subject: "", name: &["/subject/content/name"], attributes: NAMED };

/// Where a duration in milliseconds may stand; CDEvents itself defines none.
const DURATION_MS: &[&str] =
    &["/subject/content/duration_ms", "/customData/duration_ms", "/subject/content/durationMs"];

/// Where the start and end of a run may stand, as RFC 3339; used where no duration is given.
const RUN_TIMES: &[(&str, &str)] = &[
    ("/subject/content/startedAt", "/subject/content/finishedAt"),
    ("/subject/content/startTime", "/subject/content/endTime"),
    ("/customData/startedAt", "/customData/finishedAt"),
];

const SEVERITY: &[&str] = &["/subject/content/severity", "/customData/severity"];

pub(super) fn is_cdevent(kind: &str) -> bool {
    kind.starts_with(PREFIX)
}

/// Fills the columns of an event from its data, which must hold a CDEvent. `timed` says that the envelope brought a
/// time; without one that of the data's context holds.
pub(super) fn fill(event: &mut Event, timed: bool) -> Result<(), Reject> {
    let text = event.data.as_deref().ok_or_else(|| missing("data"))?;
    let data: Value = serde_json::from_str(text)
        .map_err(|error| Reject::new(Reason::Syntax, format!("data: expected a CDEvent, got {error}")))?;
    let subject = data.get("subject").ok_or_else(|| missing("data.subject"))?;
    if !subject.is_object() {
        return Err(refuse(Reason::Type, "data.subject", "an object", &subject.to_string()));
    }
    let row = row_of(&event.kind);
    let paths = row.name.iter().chain(&["/subject/id"]);
    match paths.filter_map(|path| text_at(&data, path)).find(|name| !name.is_empty()) {
        Some(name) => event.subject = name,
        None if event.subject.is_empty() => return Err(missing("data.subject.id")),
        None => {}
    }
    for (name, path) in row.attributes {
        if let Some(value) = text_at(&data, path) {
            event.attributes.entry((*name).to_owned()).or_insert(value);
        }
    }
    event.outcome = text_at(&data, "/subject/content/outcome");
    event.severity = SEVERITY.iter().find_map(|path| text_at(&data, path));
    event.duration_ms = duration_ms(&data);
    if let Some(at) = time_at(&data, "/context/timestamp").filter(|_| !timed) {
        event.ts = at;
    }
    Ok(())
}

fn row_of(kind: &str) -> &'static Row {
    let subject = kind.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()).unwrap_or_default();
    TABLE.iter().find(|row| row.subject.eq_ignore_ascii_case(subject)).unwrap_or(&OTHER)
}

fn duration_ms(data: &Value) -> Option<f64> {
    let given = DURATION_MS.iter().find_map(|path| data.pointer(path)?.as_f64());
    let told = || {
        RUN_TIMES.iter().find_map(|(start, end)| {
            let (start, end) = (time_at(data, start)?, time_at(data, end)?);
            (start <= end).then(|| end.since(start).as_secs_f64() * 1e3)
        })
    };
    given.filter(|ms| *ms >= 0.0).or_else(told)
}

fn time_at(data: &Value, path: &str) -> Option<EventTime> {
    EventTime::parse_rfc3339(data.pointer(path)?.as_str()?)
}

/// Returns the scalar at a path as text.
fn text_at(data: &Value, path: &str) -> Option<String> {
    match data.pointer(path)? {
        Value::String(text) => Some(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
