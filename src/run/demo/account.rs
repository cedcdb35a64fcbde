//! What was injected beside what was found: which finding speaks for which incident, and which speaks for none.
//!
//! Looks at ticks alone; a finding counts only as what the service itself said.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::fleet::Injected;
use crate::model::alert::{Alert, State};
use crate::model::decision::Decision;
use crate::model::finding::{Anomaly, Method};
use crate::model::time::EventTime;
use crate::run::closed_loop::Tick;

/// Findings may come this long after an incident ended and still speak for it: a rule's `for` and its window.
const AFTERMATH: Duration = Duration::from_secs(8 * 60);

/// A finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The kind of the incident it speaks for; where none, its own.
    pub kind: String,
    pub target: String,
    pub at: EventTime,
    /// Id of the alert, anomaly or decision.
    pub alert_id: String,
    /// What said it.
    pub by: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Incident {
    pub kind: &'static str,
    pub target: String,
    pub start: EventTime,
    pub end: EventTime,
}

/// Something to tell the person who watches.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    pub at: EventTime,
    pub what: Topic,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Injected,
    Found,
    Resolved,
    Decided,
    Stray,
}

/// The account of one run.
pub struct Account {
    at: EventTime,
    injected: Vec<Incident>,
    found: Vec<Found>,
    strays: Vec<Found>,
    decisions: Vec<Decision>,
    replicas: BTreeMap<String, u32>,
    pub windows: usize,
    pub forecasts: usize,
}

/// The account as written to a file.
#[derive(Serialize)]
pub struct Report<'a> {
    injected: &'a [Incident],
    found: &'a [Found],
    decisions: &'a [Decision],
    false_alarms: usize,
    strays: &'a [Found],
}

impl Account {
    pub fn new(start: EventTime) -> Account {
        Account {
            at: start,
            injected: Vec::new(),
            found: Vec::new(),
            strays: Vec::new(),
            decisions: Vec::new(),
            replicas: BTreeMap::new(),
            windows: 0,
            forecasts: 0,
        }
    }

    /// Returns the last tick dealt with.
    pub fn at(&self) -> EventTime {
        self.at
    }

    pub fn injected(&self) -> &[Incident] {
        &self.injected
    }

    pub fn decisions(&self) -> usize {
        self.decisions.len()
    }

    pub fn strays(&self) -> &[Found] {
        &self.strays
    }

    /// Returns the first finding that speaks for an incident.
    pub fn first_found(&self, incident: &Incident) -> Option<&Found> {
        self.found.iter().find(|found| found.kind == incident.kind && speaks_within(incident, found.at))
    }

    /// Takes note of the incidents that have begun.
    pub fn inject(&mut self, all: &[Injected], now: EventTime) -> Vec<News> {
        let begun = all.iter().skip(self.injected.len()).take_while(|incident| incident.start <= now);
        let new: Vec<Incident> = begun
            .map(|one| Incident { kind: one.kind, target: one.target.clone(), start: one.start, end: one.end })
            .collect();
        let news = new.iter().map(|incident| News {
            at: incident.start,
            what: Topic::Injected,
            text: format!("{} at {}", incident.kind, incident.target),
        });
        let news = news.collect();
        self.injected.extend(new);
        news
    }

    /// Takes in what a tick gave.
    pub fn take(&mut self, tick: &Tick) -> Vec<News> {
        self.at = tick.at;
        self.windows += tick.emissions.len();
        self.forecasts += tick.forecasts.len();
        let mut news = Vec::new();
        for alert in &tick.alerts {
            match alert.state {
                State::Firing => news.push(self.judge(of_alert(alert), &alert_text(alert))),
                State::Resolved if self.was_found(&alert.rule, alert) => {
                    news.push(News { at: tick.at, what: Topic::Resolved, text: alert_text(alert) });
                }
                _ => {}
            }
        }
        for anomaly in &tick.anomalies {
            if let Some(one) = self.judge_anomaly(anomaly) {
                news.push(one);
            }
        }
        for decision in &tick.decisions {
            news.extend(self.judge_decision(decision));
        }
        self.decisions.extend(tick.decisions.iter().cloned());
        news
    }

    pub fn report(&self) -> Report<'_> {
        Report {
            injected: &self.injected,
            found: &self.found,
            decisions: &self.decisions,
            false_alarms: self.strays.len(),
            strays: &self.strays,
        }
    }

    fn was_found(&self, rule: &str, alert: &Alert) -> bool {
        let target = of_alert(alert).target;
        self.found.iter().chain(&self.strays).any(|found| found.by == rule && found.target == target)
    }

    /// Files a finding under the incident it speaks for, or as a stray.
    fn judge(&mut self, mut found: Found, text: &str) -> News {
        let explains = self.injected.iter().rev().find(|incident| explains(incident, &found));
        let what = match explains {
            Some(incident) => {
                found.kind = incident.kind.to_owned();
                self.found.push(found.clone());
                Topic::Found
            }
            None => {
                self.strays.push(found.clone());
                Topic::Stray
            }
        };
        News { at: found.at, what, text: text.to_owned() }
    }

    /// An outlier is found anew in every window while it lasts; only the first is news.
    fn judge_anomaly(&mut self, anomaly: &Anomaly) -> Option<News> {
        let found = of_anomaly(anomaly);
        let known = |other: &Found| {
            other.by == found.by && other.target == found.target && anomaly.at.since(other.at) < AFTERMATH
        };
        if self.found.iter().chain(&self.strays).any(known) {
            return None;
        }
        let text = format!(
            "{} {}: {} {:.3} instead of {:.3}",
            found.by, found.target, anomaly.track.column, anomaly.value, anomaly.expected
        );
        Some(self.judge(found, &text))
    }

    /// A decision to add replicas speaks for a load ramp; decisions are answers, so none is ever a false alarm.
    fn judge_decision(&mut self, decision: &Decision) -> Option<News> {
        let desired = decision.desired_replicas?;
        let before = self.replicas.insert(decision.target.clone(), desired);
        let found = Found {
            kind: "scale_up".to_owned(),
            target: decision.target.clone(),
            at: decision.at,
            alert_id: decision.id.clone(),
            by: "planner".to_owned(),
        };
        let ramp = self.injected.iter().rev().find(|incident| explains(incident, &found)).map(|one| one.kind);
        let answered =
            self.found.iter().any(|f| f.by == "planner" && f.target == found.target && Some(f.kind.as_str()) == ramp);
        if let (Some(kind), Some(before)) = (ramp, before)
            && desired > before
            && !answered
        {
            self.found.push(Found { kind: kind.to_owned(), ..found });
        }
        let text = format!("{} to {desired} replicas: {}", decision.target, decision.reason);
        Some(News { at: decision.at, what: Topic::Decided, text })
    }
}

fn alert_text(alert: &Alert) -> String {
    let summary = alert.annotations.get("summary").cloned();
    format!("{} ({}): {}", alert.rule, alert.severity.as_str(), summary.unwrap_or_else(|| of_alert(alert).target))
}

fn of_alert(alert: &Alert) -> Found {
    let target = ["replica", "service", "workflow", "component"].iter().find_map(|label| alert.labels.get(*label));
    Found {
        kind: alert.rule.clone(),
        target: target.cloned().unwrap_or_default(),
        at: alert.at,
        alert_id: alert.id.clone(),
        by: alert.rule.clone(),
    }
}

fn of_anomaly(anomaly: &Anomaly) -> Found {
    let key = &anomaly.track.key;
    let (by, target) = match anomaly.method {
        Method::Dbscan => ("outlier", key.get("replica").or(key.get("service"))),
        Method::Residual => ("anomaly", key.get("service")),
    };
    Found {
        kind: by.to_owned(),
        target: target.cloned().unwrap_or_default(),
        at: anomaly.at,
        alert_id: anomaly.id.clone(),
        by: by.to_owned(),
    }
}

fn speaks_within(incident: &Incident, at: EventTime) -> bool {
    incident.start <= at && at <= incident.end + AFTERMATH
}

/// Tells whether an incident is what a finding is about. A replica belongs to its service: `checkout-2` to `checkout`.
fn explains(incident: &Incident, found: &Found) -> bool {
    let same = found.target == incident.target
        || found.target.starts_with(&format!("{}-", incident.target))
        || incident.target.starts_with(&format!("{}-", found.target));
    let fits = match incident.kind {
        "latency_regression" => matches!(found.by.as_str(), "response_time_high" | "anomaly" | "resource_exhausted"),
        "replica_drift" => {
            matches!(found.by.as_str(), "outlier" | "resource_exhausted" | "anomaly" | "response_time_high")
        }
        "load_ramp" => matches!(found.by.as_str(), "planner" | "anomaly" | "resource_exhausted" | "response_time_high"),
        "workflow_failure" => found.by == "workflow_failing",
        "component_unhealthy" => found.by == "component_unhealthy",
        _ => false,
    };
    same && fits && speaks_within(incident, found.at)
}
