//! The alert state machine: what a rule's rows at one tick do to its alerts. Pure: it reads no clock and runs no query,
//! and the same ticks always give the same transitions with the same ids.
//!
//! An instance is one label set of one rule. It goes inactive → pending → firing → resolved as in Prometheus:
//!
//! - The tick at which its row first appears starts an *episode* (`active_since`). With a `for` of zero it fires at
//!   once; otherwise it is pending, and fires at the first tick that is `for` or more after the start.
//! - The first tick without its row ends an episode that is pending.
//! - One that fires goes on while its row was missing for less than `keep_firing_for`, counted from the first tick
//!   without it.
//! - The end of an episode is the transition `resolved`, also where it never fired: whoever read `pending` learns that
//!   nothing is pending any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Error;
use super::rule::Rule;
use crate::model::alert::{Alert, Severity, State};
use crate::model::time::EventTime;

/// How many instances of one rule are followed where nothing else is said.
pub const INSTANCES_MAX: usize = 10_000;

/// One row that a rule's query returned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// Its text columns.
    pub labels: BTreeMap<String, String>,
    /// Its column `value`; kept only where it is finite.
    pub value: Option<f64>,
    /// All its columns as text, for the annotations.
    pub columns: BTreeMap<String, String>,
}

/// The alerts of all rules. What is written down by serde and read back goes on exactly where it stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alerts {
    rules: BTreeMap<String, Episodes>,
    instances_max: usize,
    refused: u64,
}

impl Default for Alerts {
    fn default() -> Self {
        Alerts::new(INSTANCES_MAX)
    }
}

impl Alerts {
    /// Makes the state before any evaluation; it follows up to `instances_max` instances of each rule.
    pub fn new(instances_max: usize) -> Self {
        Alerts { rules: BTreeMap::new(), instances_max, refused: 0 }
    }

    /// Returns these alerts with another bound, for a state that was read back under changed settings. Instances over a
    /// lower bound are followed to the end of their episodes.
    pub fn with_instances_max(self, instances_max: usize) -> Self {
        Alerts { instances_max, ..self }
    }

    /// Takes the rows of one rule at one tick and returns the transitions: first what ended, then what began or fired,
    /// each in the order of fingerprints, whatever the order of the rows.
    ///
    /// A rule whose text changed goes on with its instances under the new version, so that an edit wakes nobody twice.
    ///
    /// Errors leave the state as it was: two rows with the same labels, or a tick not after the last one (an id is of
    /// the start of its episode, so one tick must not start two).
    pub fn step(&mut self, rule: &Rule, at: EventTime, instances: &[Instance]) -> Result<Vec<Alert>, Error> {
        if let Some(last) = self.rules.get(&rule.name).map(|episodes| episodes.evaluated_at).filter(|last| at <= *last)
        {
            return Err(Error::OutOfOrder { rule: rule.name.clone(), last, at });
        }
        let rows = by_fingerprint(rule, instances)?;
        let episodes = self.rules.entry(rule.name.clone()).or_insert_with(|| Episodes::new(rule, at));
        episodes.adopt(rule, at);
        let mut transitions = episodes.end_absent(rule, at, &rows);
        for (fingerprint, row) in rows {
            if !episodes.open.contains_key(&fingerprint) && episodes.open.len() >= self.instances_max {
                self.refused = self.refused.saturating_add(1);
                continue;
            }
            transitions.extend(episodes.take(rule, at, fingerprint, row));
        }
        Ok(transitions)
    }

    /// Ends the alerts of all rules but the given ones, as when their files were removed, and returns the transitions.
    pub fn retain_rules(&mut self, rules: &[Rule], at: EventTime) -> Vec<Alert> {
        let mut transitions = Vec::new();
        self.rules.retain(|name, episodes| {
            let stays = rules.iter().any(|rule| rule.name == *name);
            if !stays {
                let open = &episodes.open;
                transitions.extend(open.iter().map(|(fingerprint, episode)| {
                    episode.transition(name, episodes, fingerprint, at, State::Resolved)
                }));
            }
            stays
        });
        transitions
    }

    /// Returns the alerts that are pending or firing, ordered by rule and fingerprint.
    pub fn active(&self) -> impl Iterator<Item = Active<'_>> {
        self.rules.iter().flat_map(|(rule, episodes)| {
            episodes.open.iter().map(move |(fingerprint, episode)| Active {
                rule,
                fingerprint,
                severity: episodes.severity,
                state: episode.state(),
                active_since: episode.active_since,
                labels: &episode.labels,
                annotations: &episode.annotations,
                value: episode.value,
            })
        })
    }

    /// Returns how often a row was passed over because its rule had as many instances as are followed.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// An alert that is pending or firing, as `/metrics` and `/api/v1/alerts` show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Active<'a> {
    pub rule: &'a str,
    pub fingerprint: &'a str,
    pub severity: Severity,
    pub state: State,
    pub active_since: EventTime,
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
    pub value: Option<f64>,
}

/// The open episodes of one rule, by fingerprint, and what is needed of the rule to end them without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Episodes {
    version: String,
    severity: Severity,
    evaluated_at: EventTime,
    open: BTreeMap<String, Episode>,
}

impl Episodes {
    fn new(rule: &Rule, at: EventTime) -> Self {
        let open = BTreeMap::new();
        Episodes { version: rule.version.clone(), severity: rule.severity, evaluated_at: at, open }
    }

    fn adopt(&mut self, rule: &Rule, at: EventTime) {
        self.version.clone_from(&rule.version);
        self.severity = rule.severity;
        self.evaluated_at = at;
    }

    /// Ends the episodes without a row that are neither firing nor kept firing.
    fn end_absent(&mut self, rule: &Rule, at: EventTime, rows: &BTreeMap<String, Row<'_>>) -> Vec<Alert> {
        let mut ended = Vec::new();
        for (fingerprint, episode) in &mut self.open {
            if rows.contains_key(fingerprint) {
                continue;
            }
            let absent_since = *episode.absent_since.get_or_insert(at);
            if !episode.firing || at.since(absent_since) >= rule.keep_firing_for {
                ended.push(fingerprint.clone());
            }
        }
        let ended = ended.into_iter().filter_map(|fingerprint| self.open.remove_entry(&fingerprint));
        let ended: Vec<_> = ended.collect();
        ended
            .iter()
            .map(|(fingerprint, episode)| episode.transition(&rule.name, self, fingerprint, at, State::Resolved))
            .collect()
    }

    /// Takes one row: begins its episode or goes on with it, and fires where it has held for long enough.
    fn take(&mut self, rule: &Rule, at: EventTime, fingerprint: String, row: Row<'_>) -> Option<Alert> {
        let value = row.instance.value.filter(|value| value.is_finite());
        let annotations: BTreeMap<String, String> = rule
            .annotations
            .iter()
            .map(|(key, template)| (key.clone(), template.render(value, &row.instance.columns, &row.labels)))
            .collect();
        let known = self.open.remove(&fingerprint);
        let begins = known.is_none();
        let (active_since, was_firing) = known.map_or((at, false), |episode| (episode.active_since, episode.firing));
        let firing = was_firing || at.since(active_since) >= rule.for_;
        let episode = Episode { labels: row.labels, annotations, value, active_since, firing, absent_since: None };
        let transition = match (begins, was_firing, firing) {
            (_, false, true) => Some(State::Firing),
            (true, _, false) => Some(State::Pending),
            _ => None,
        };
        let alert = transition.map(|state| episode.transition(&rule.name, self, &fingerprint, at, state));
        self.open.insert(fingerprint, episode);
        alert
    }
}

/// One instance from the tick of its first row to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Episode {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    value: Option<f64>,
    active_since: EventTime,
    firing: bool,
    /// The first tick since which its row is missing.
    absent_since: Option<EventTime>,
}

impl Episode {
    fn state(&self) -> State {
        if self.firing { State::Firing } else { State::Pending }
    }

    fn transition(&self, rule: &str, of: &Episodes, fingerprint: &str, at: EventTime, state: State) -> Alert {
        Alert {
            id: Alert::id_of(&of.version, fingerprint, self.active_since, state),
            rule: rule.to_owned(),
            rule_version: of.version.clone(),
            fingerprint: fingerprint.to_owned(),
            severity: of.severity,
            state,
            at,
            active_since: self.active_since,
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            value: self.value,
        }
    }
}

/// A row with its labels as the alert carries them.
struct Row<'a> {
    labels: BTreeMap<String, String>,
    instance: &'a Instance,
}

/// Adds the rule's labels to each row, over its own, and orders the rows by fingerprint.
fn by_fingerprint<'a>(rule: &Rule, instances: &'a [Instance]) -> Result<BTreeMap<String, Row<'a>>, Error> {
    let mut rows = BTreeMap::new();
    for instance in instances {
        let mut labels = instance.labels.clone();
        labels.extend(rule.labels.iter().map(|(name, value)| (name.clone(), value.clone())));
        let fingerprint = Alert::fingerprint_of(&rule.name, &labels);
        if let Some(Row { labels, .. }) = rows.insert(fingerprint, Row { labels, instance }) {
            return Err(Error::RepeatedInstance { rule: rule.name.clone(), labels: format!("{labels:?}") });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
