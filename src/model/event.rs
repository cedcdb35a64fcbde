//! An event: something that happened to a subject, with an outcome.

use std::collections::BTreeMap;

use super::time::EventTime;

/// One row of the `events` table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    pub ts: EventTime,
    /// Unique within `source`; made of the content's hash where the producer gave none.
    pub id: String,
    pub source: String,
    /// The kind of event, such as `workflow.completed` or `dev.cdevents.taskrun.finished.0.2.0`.
    pub kind: String,
    /// What it happened to, such as a workflow's name.
    pub subject: String,
    pub outcome: Option<String>,
    pub duration_ms: Option<f64>,
    pub severity: Option<String>,
    pub attributes: BTreeMap<String, String>,
    /// The rest of the payload, as JSON text.
    pub data: Option<String>,
}
