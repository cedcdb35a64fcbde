//! Alerts: what a rule says of one instance, and the transitions it goes through.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id;
use super::time::EventTime;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
    Emergency,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
            Severity::Emergency => "emergency",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Severity::Info, Severity::Warning, Severity::Critical, Severity::Emergency]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// Where an instance of an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Pending,
    Firing,
    Resolved,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Firing => "firing",
            State::Resolved => "resolved",
        }
    }
}

/// One transition of one alert: a row of `alerts`, and a record on the alerts topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Of (rule, rule version, fingerprint, start of the episode, state): the same on every re-emission.
    pub id: String,
    pub rule: String,
    /// Hash of the rule's text.
    pub rule_version: String,
    /// Of (rule, labels): the same through all episodes of one instance.
    pub fingerprint: String,
    pub severity: Severity,
    pub state: State,
    /// When this transition happened, in event time.
    pub at: EventTime,
    /// When the condition first held in this episode.
    pub active_since: EventTime,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub value: Option<f64>,
}

impl Alert {
    pub fn fingerprint_of(rule: &str, labels: &BTreeMap<String, String>) -> String {
        let pairs = labels.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        id::of_parts(["alert", rule].into_iter().chain(pairs))
    }

    pub fn id_of(rule_version: &str, fingerprint: &str, active_since: EventTime, state: State) -> String {
        let since = active_since.as_micros().to_string();
        id::of_parts(["alert", rule_version, fingerprint, &since, state.as_str()])
    }
}
