//! The closed loop: closed windows go in, and at every tick of event time what was found, forecast, alerted and decided
//! comes out. The order of windows within a tick is fixed, so the same windows always give the same answers.
//!
//! Reads no clock and sends nothing; what it returns is carried out elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::rows;
use super::rules::Rules;
use crate::decide::alert::{Active, Alerts};
use crate::decide::planner::{Inputs, ScalingTarget, TargetState, plan};
use crate::decide::rule::Rule;
use crate::insight::{self, Insight};
use crate::model::alert::Alert;
use crate::model::decision::Decision;
use crate::model::finding::{Anomaly, Forecast, Track};
use crate::model::time::EventTime;
use crate::stream::Emission;

/// Loads kept per scaling target.
const HISTORY_MAX: usize = 256;

/// What one tick gave.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    pub at: EventTime,
    /// The windows it covers.
    pub emissions: Vec<Emission>,
    pub anomalies: Vec<Anomaly>,
    pub scores: Vec<(Track, f64)>,
    pub forecasts: Vec<Forecast>,
    pub alerts: Vec<Alert>,
    pub decisions: Vec<Decision>,
}

/// A scaling target and what is known of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Scaling {
    state: TargetState,
    history: VecDeque<(EventTime, f64)>,
    forecast: Vec<(EventTime, f64)>,
    issued_at: Option<EventTime>,
}

/// The memory of the loop, as it is saved and restored.
#[derive(Serialize, Deserialize)]
struct Saved {
    tick: EventTime,
    insight: String,
    alerts: Alerts,
    scaling: BTreeMap<String, Scaling>,
}

pub struct ClosedLoop {
    interval: Duration,
    insight_settings: insight::settings::Settings,
    insight: Insight,
    rules: Rules,
    alerts: Alerts,
    targets: Vec<ScalingTarget>,
    scaling: BTreeMap<String, Scaling>,
    slides: BTreeMap<String, Duration>,
    /// The last tick; none before the first window.
    tick: Option<EventTime>,
    /// Windows closed and not yet covered by a tick, by their end.
    waiting: BTreeMap<EventTime, Vec<Emission>>,
}

/// What the loop is made of.
pub struct Parts {
    pub interval: Duration,
    pub insight: insight::settings::Settings,
    pub rules: Rules,
    pub targets: Vec<ScalingTarget>,
    /// How far apart the windows of each view are.
    pub slides: BTreeMap<String, Duration>,
}

impl ClosedLoop {
    pub fn new(parts: Parts) -> Result<ClosedLoop> {
        let Parts { interval, insight: insight_settings, rules, targets, slides } = parts;
        let insight = Insight::new(&insight_settings)?;
        Ok(ClosedLoop {
            interval,
            insight_settings,
            insight,
            rules,
            alerts: Alerts::default(),
            targets,
            scaling: BTreeMap::new(),
            slides,
            tick: None,
            waiting: BTreeMap::new(),
        })
    }

    /// Goes on with other rules, targets and settings. What they have in common with those before keeps its memory: rules
    /// and targets by name, insight entry by entry.
    pub fn reload(&mut self, parts: Parts) -> Result<()> {
        let Parts { interval, insight, mut rules, targets, slides } = parts;
        let memory = self.insight.save()?;
        self.insight = Insight::restore(&insight, &memory)?;
        rules.see_as(&self.rules);
        self.scaling.retain(|target, _| {
            let mut of_old = self.targets.iter().filter(|old| old.target == *target);
            of_old.any(|old| targets.iter().any(|new| new.target == *target && new.load() == old.load()))
        });
        (self.interval, self.insight_settings, self.rules) = (interval, insight, rules);
        (self.targets, self.slides) = (targets, slides);
        Ok(())
    }

    /// Returns the last tick; what ends at or before it is dealt with.
    pub fn tick(&self) -> Option<EventTime> {
        self.tick
    }

    /// Returns the memory of the loop as text.
    pub fn save(&self) -> Result<Option<String>> {
        let Some(tick) = self.tick else { return Ok(None) };
        let insight = String::from_utf8(self.insight.save()?).context("the state of insight is JSON")?;
        let saved = Saved { tick, insight, alerts: self.alerts.clone(), scaling: self.scaling.clone() };
        Ok(Some(serde_json::to_string(&saved)?))
    }

    /// Takes the memory up again where it was saved.
    pub fn restore(&mut self, text: &str) -> Result<()> {
        let saved: Saved = serde_json::from_str(text).context("the saved state of the loop does not read")?;
        self.insight = Insight::restore(&self.insight_settings, saved.insight.as_bytes())?;
        self.alerts = saved.alerts;
        self.scaling = saved.scaling;
        self.tick = Some(saved.tick);
        Ok(())
    }

    /// Takes in a closed window. One that a tick has covered already is known and passed over.
    pub fn feed(&mut self, emission: Emission) {
        if self.tick.is_none_or(|tick| emission.window.end > tick) {
            self.waiting.entry(emission.window.end).or_default().push(emission);
        }
    }

    /// Shows the rules a window again that a tick before a restart covered, while it is still the newest of its view.
    pub fn show_again(&mut self, emission: &Emission) {
        self.rules.show(&emission.view, emission.window.end, emission.rows.clone());
    }

    /// Returns the alerts that are pending or firing.
    pub fn active_alerts(&self) -> impl Iterator<Item = Active<'_>> {
        self.alerts.active()
    }

    /// Runs the next tick that all views have passed, where there is one.
    pub async fn step(&mut self, complete_through: EventTime) -> Result<Option<Tick>> {
        let Some(at) = self.next_tick().filter(|&at| at <= complete_through) else { return Ok(None) };
        self.tick = Some(at);
        let mut tick = Tick { at, ..Tick::default() };
        let later = self.waiting.split_off(&(at + Duration::from_micros(1)));
        for mut emissions in std::mem::replace(&mut self.waiting, later).into_values() {
            emissions.sort_by(|a, b| a.view.cmp(&b.view));
            for emission in emissions {
                self.observe(&emission, &mut tick);
                tick.emissions.push(emission);
            }
        }
        self.alert(at, &mut tick).await?;
        self.decide(at, &mut tick);
        Ok(Some(tick))
    }

    /// Ticks are the multiples of the interval. While nothing waits and nothing is going on, they are skipped.
    fn next_tick(&self) -> Option<EventTime> {
        let ceil = |at: EventTime| {
            let floor = at.floor(self.interval);
            if floor == at { at } else { floor + self.interval }
        };
        let waiting = self.waiting.keys().next().map(|&end| ceil(end));
        match self.tick {
            None => waiting,
            // The interval may be another than that of the last tick.
            Some(last) => Some(last.floor(self.interval) + self.interval),
        }
    }

    fn observe(&mut self, emission: &Emission, tick: &mut Tick) {
        let view = &*emission.view;
        self.rules.show(view, emission.window.end, emission.rows.clone());
        let planned_on = self.targets.iter().any(|target| target.view == view);
        if !planned_on && !self.insight.watches(view) {
            return;
        }
        let rows: Vec<insight::Row> = rows::of_batch(&emission.rows).collect();
        let step = self.slides.get(view).copied().unwrap_or(self.interval);
        let findings = self.insight.observe(view, emission.window.end, step, &rows);
        for target in self.targets.iter().filter(|target| target.view == view) {
            let scaling = self.scaling.entry(target.target.clone()).or_default();
            scaling.take_load(target, emission.window.end, &rows);
            scaling.take_forecast(target, &findings.forecasts);
        }
        tick.anomalies.extend(findings.anomalies);
        tick.scores.extend(findings.scores);
        tick.forecasts.extend(findings.forecasts);
    }

    async fn alert(&mut self, at: EventTime, tick: &mut Tick) -> Result<()> {
        for (rule, instances) in self.rules.evaluate(at).await? {
            match self.alerts.step(rule, at, instances) {
                Ok(transitions) => tick.alerts.extend(transitions),
                Err(error) => warn!(rule = rule.name, %error, "a rule's rows were passed over"),
            }
        }
        let known: Vec<Rule> = self.rules.all().cloned().collect();
        tick.alerts.extend(self.alerts.retain_rules(&known, at));
        Ok(())
    }

    fn decide(&mut self, at: EventTime, tick: &mut Tick) {
        for target in &self.targets {
            let scaling = self.scaling.entry(target.target.clone()).or_default();
            let inputs = Inputs {
                history: scaling.history.make_contiguous(),
                forecast: &scaling.forecast,
                issued_at: scaling.issued_at,
            };
            let (decision, state) = plan(target, at, &inputs, &scaling.state);
            scaling.state = state;
            tick.decisions.extend(decision);
        }
    }
}

impl Scaling {
    /// Takes the load of a window: the sum over the rows that bear the target's key.
    fn take_load(&mut self, target: &ScalingTarget, at: EventTime, rows: &[insight::Row]) {
        let fits = |row: &&insight::Row| target.key.iter().all(|(name, value)| row.key.get(name) == Some(value));
        let loads: Vec<f64> =
            rows.iter().filter(fits).filter_map(|row| row.values.get(&target.column).copied()).collect();
        if loads.is_empty() {
            return;
        }
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        let load: f64 = loads.iter().sum();
        if load.is_finite() {
            self.history.push_back((at, load));
        }
    }

    fn take_forecast(&mut self, target: &ScalingTarget, forecasts: &[Forecast]) {
        let ours = |forecast: &&Forecast| {
            forecast.track.view == target.view
                && forecast.track.column == target.column
                && target.key.iter().all(|(name, value)| forecast.track.key.get(name) == Some(value))
        };
        let Some(issued_at) = forecasts.iter().filter(ours).map(|forecast| forecast.issued_at).max() else { return };
        let mut newest: BTreeMap<EventTime, f64> = BTreeMap::new();
        for forecast in forecasts.iter().filter(ours).filter(|forecast| forecast.issued_at == issued_at) {
            if forecast.yhat_upper.is_finite() {
                *newest.entry(forecast.target_time).or_default() += forecast.yhat_upper;
            }
        }
        self.issued_at = Some(issued_at);
        self.forecast = newest.into_iter().collect();
    }
}
