//! The planner: load and forecast in, an absolute number of replicas with its reasons out, or a typed abstention. Pure:
//! it reads no clock and talks to no orchestrator. Missing data is never read as no load: where the planner cannot
//! judge it says why, and the orchestrator keeps what it has.
//!
//! How a plan comes about:
//!
//! 1. *Need.* Replicas for the load of now at `utilization` of their capacity (a measured load carries no margin), and
//!    for the highest upper bound of the forecast at all of their capacity (the bound is the margin). The larger
//!    counts. The forecast is looked at from now until start-up plus hold: what is asked for now serves after
//!    start-up, and a decision to go down is held for at least the cooldown.
//! 2. *Up at once* where the need is above what is asked for.
//! 3. *Down* only after a lower need has held for the whole cooldown, to the highest need of that time (the
//!    stabilisation window), and only where the lower number would hold [`TOLERANCE`] more than the need, so that a
//!    load on the edge between two numbers does not move them back and forth.
//! 4. *Said* only where the number or the abstention changed; the epoch grows by one each time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::model::decision::{Abstention, Decision, Evidence};
use crate::model::time::EventTime;

mod reason;

/// How much more than the need the lower number must hold before the planner goes down: the width of the hysteresis.
pub const TOLERANCE: f64 = 0.05;

/// What to scale, by which load, within which bounds: one `[[scaling]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScalingTarget {
    /// Name of the target, as the orchestrator knows it.
    pub target: String,
    /// The view whose rows carry the load.
    pub view: String,
    /// The column that is the load.
    pub column: String,
    /// Which of the view's rows: key columns and their values.
    #[serde(default)]
    pub key: BTreeMap<String, String>,
    /// The load that one replica holds, in the column's unit.
    pub capacity_per_replica: f64,
    /// The share of the capacity to plan with for a measured load, in (0, 1].
    #[serde(default = "defaults::utilization")]
    pub utilization: f64,
    #[serde(default = "defaults::replicas_min")]
    pub replicas_min: u32,
    pub replicas_max: u32,
    /// How long a new replica takes until it serves.
    #[serde(default = "defaults::startup", with = "duration_text")]
    #[schemars(with = "String")]
    pub startup: Duration,
    /// How long a lower need must hold before replicas are taken away.
    #[serde(default = "defaults::cooldown", with = "duration_text")]
    #[schemars(with = "String")]
    pub cooldown: Duration,
    /// What a replica costs an hour; zero where it is not known.
    #[serde(default)]
    pub cost_per_replica_hour: f64,
    /// The age from which the newest row is too old to decide by.
    #[serde(default = "defaults::stale_after", with = "duration_text")]
    #[schemars(with = "String")]
    pub stale_after: Duration,
    /// How many usable rows are needed to decide.
    #[serde(default = "defaults::history_min")]
    pub history_min: usize,
    /// What stands behind a load in reasons, such as `/s`.
    #[serde(default)]
    pub unit: String,
}

impl ScalingTarget {
    /// Returns where its load is read: the view, the column and the key of the row.
    pub fn load(&self) -> (&str, &str, &BTreeMap<String, String>) {
        (&self.view, &self.column, &self.key)
    }

    /// Refuses values that no plan can be made with.
    pub fn check(&self) -> Result<(), Error> {
        let refuse =
            |key, expected, got: String| Err(Error::TargetValue { target: self.target.clone(), key, expected, got });
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if self.target.is_empty() {
            return refuse("target", "a name", "none".to_owned());
        }
        if !positive(self.capacity_per_replica) {
            return refuse("capacity_per_replica", "a number above zero", self.capacity_per_replica.to_string());
        }
        if !positive(self.utilization) || self.utilization > 1.0 {
            return refuse("utilization", "a share above 0 and at most 1", self.utilization.to_string());
        }
        if self.replicas_min > self.replicas_max || self.replicas_max == 0 {
            let got = format!("{} with a minimum of {}", self.replicas_max, self.replicas_min);
            return refuse("replicas_max", "at least one, and at least replicas_min", got);
        }
        if !self.cost_per_replica_hour.is_finite() || self.cost_per_replica_hour < 0.0 {
            return refuse(
                "cost_per_replica_hour",
                "a number of at least zero",
                self.cost_per_replica_hour.to_string(),
            );
        }
        if self.stale_after.is_zero() {
            return refuse("stale_after", "a duration above zero", "0s".to_owned());
        }
        Ok(())
    }

    /// Returns how far ahead a plan looks: start-up plus the time that a number is held.
    pub fn lookahead(&self) -> Duration {
        self.startup.saturating_add(self.cooldown)
    }
}

/// What is known at the moment of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs<'a> {
    /// Recent loads by the end of their window, in any order; one per window.
    pub history: &'a [(EventTime, f64)],
    /// `target_time` and `yhat_upper` of the newest forecast; empty where there is none.
    pub forecast: &'a [(EventTime, f64)],
    /// When that forecast was issued.
    pub issued_at: Option<EventTime>,
}

/// What the planner remembers of a target. What is written down by serde and read back goes on exactly where it stood.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetState {
    pub epoch: u64,
    /// Replicas last asked for; kept through abstentions.
    pub desired_replicas: Option<u32>,
    /// The abstention last said.
    pub abstention: Option<Abstention>,
    planned_at: Option<EventTime>,
    /// Since when the need has been below what is asked for.
    lower_since: Option<EventTime>,
    /// The needs that can still be the highest of the stabilisation window: times rise, needs fall. As needs are whole
    /// numbers within the target's bounds, there are never more of them than those bounds are apart.
    needs: VecDeque<(EventTime, u32)>,
}

impl TargetState {
    /// Takes the need of this moment and drops what it outweighs and what left the window `(now - cooldown, now]`.
    fn observe(&mut self, now: EventTime, need: u32, cooldown: Duration) {
        while self.needs.back().is_some_and(|(_, earlier)| *earlier <= need) {
            self.needs.pop_back();
        }
        self.needs.push_back((now, need));
        while self.needs.front().is_some_and(|(at, _)| *at < now && now.since(*at) >= cooldown) {
            self.needs.pop_front();
        }
    }

    /// Forgets what needs were seen: after a gap nobody knows whether a lower need held.
    fn forget_needs(&mut self) {
        self.needs.clear();
        self.lower_since = None;
    }
}

/// Plans one target at one moment; returns a decision where there is something new to say, and the state to plan from
/// at the next moment. A moment not after the last one says nothing and changes nothing.
///
/// The confidence of a number is the product of four shares, cut to a thousandth:
/// freshness `1 - age / (2 * stale_after)`; history `n / (n + history_min)` for `n` usable rows; forecast
/// `max(1/2, 1 / (1 + |upper - load| / max(upper, load)))`, and 1/2 without one, because a wide or steep forecast is
/// worth little more than none; reach `held / needed` where the maximum of replicas does not hold the need. An
/// abstention has a confidence of zero.
pub fn plan(
    target: &ScalingTarget,
    now: EventTime,
    inputs: &Inputs<'_>,
    state: &TargetState,
) -> (Option<Decision>, TargetState) {
    debug_assert_eq!(target.check(), Ok(()), "targets are checked when the configuration is read");
    if state.planned_at.is_some_and(|last| now <= last) {
        return (None, state.clone());
    }
    let mut next = TargetState { planned_at: Some(now), ..state.clone() };
    let load = match Load::of(target, now, inputs) {
        Ok(load) => load,
        Err(why) => {
            next.forget_needs();
            if state.abstention == Some(why.abstention) {
                return (None, next);
            }
            let decision = abstain(target, now, &why, &mut next);
            return (Some(decision), next);
        }
    };
    let need = Need::of(target, &load);
    let desired = settle(target, now, &need, &mut next);
    if state.desired_replicas == Some(desired) && state.abstention.is_none() {
        return (None, next);
    }
    next.desired_replicas = Some(desired);
    next.abstention = None;
    next.epoch = state.epoch.saturating_add(1);
    let decision = Decision {
        id: Decision::id_of(&target.target, next.epoch, now),
        target: target.target.clone(),
        epoch: next.epoch,
        at: now,
        desired_replicas: Some(desired),
        abstention: None,
        reason: reason::of_number(target, &load, &need, desired, state),
        confidence: confidence(target, now, &load, &need),
        cost_per_hour: cost(target, desired),
        evidence: Evidence {
            load: Some(load.current),
            load_at: Some(load.at),
            forecast_upper: load.peak.map(|peak| peak.upper),
            forecast_issued_at: load.peak.map(|peak| peak.issued_at),
            capacity_per_replica: target.capacity_per_replica,
            previous_replicas: state.desired_replicas,
        },
    };
    (Some(decision), next)
}

/// The load of now and of the time that a plan looks ahead.
struct Load {
    current: f64,
    at: EventTime,
    /// Usable rows.
    rows: usize,
    peak: Option<Peak>,
}

/// The highest upper bound of a forecast within the time that a plan looks ahead.
#[derive(Clone, Copy)]
struct Peak {
    at: EventTime,
    upper: f64,
    issued_at: EventTime,
}

/// Why there is no load to plan by.
struct Unknown {
    abstention: Abstention,
    newest: Option<(EventTime, f64)>,
    rows: usize,
}

impl Load {
    fn of(target: &ScalingTarget, now: EventTime, inputs: &Inputs<'_>) -> Result<Load, Unknown> {
        // Of the rows up to now: a plan must not know more than its moment did, in a replay as little as live.
        let known = || inputs.history.iter().copied().filter(|(at, _)| *at <= now);
        let newest = known().max_by_key(|(at, _)| *at);
        let rows = known().filter(|(_, load)| is_usable(*load)).count();
        let unknown = |abstention| Err(Unknown { abstention, newest, rows });
        let Some((at, current)) = newest else { return unknown(Abstention::NoData) };
        if now.since(at) > target.stale_after {
            return unknown(Abstention::StaleData);
        }
        if !is_usable(current) {
            return unknown(Abstention::UnusableLoad);
        }
        if rows < target.history_min {
            return unknown(Abstention::ShortHistory);
        }
        Ok(Load { current, at, rows, peak: Peak::of(target, now, inputs) })
    }
}

impl Peak {
    /// Returns none where there is no forecast for the time ahead, or only one older than the target allows.
    fn of(target: &ScalingTarget, now: EventTime, inputs: &Inputs<'_>) -> Option<Peak> {
        let issued_at = inputs.issued_at.filter(|at| *at <= now && now.since(*at) <= target.stale_after)?;
        let until = now + target.lookahead();
        inputs
            .forecast
            .iter()
            .filter(|(at, upper)| now < *at && *at <= until && is_usable(*upper))
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(at, upper)| Peak { at: *at, upper: *upper, issued_at })
    }
}

fn is_usable(load: f64) -> bool {
    load.is_finite() && load >= 0.0
}

/// How many replicas hold the load.
struct Need {
    /// Without the target's bounds.
    unbounded: u32,
    /// Within them.
    replicas: u32,
    /// Within them, with the tolerance on top: as few as that may be gone down to.
    with_tolerance: u32,
    /// Whether the forecast asks for more than the load of now does.
    by_forecast: bool,
}

impl Need {
    fn of(target: &ScalingTarget, load: &Load) -> Need {
        let now = load.current / target.utilization;
        let ahead = load.peak.map_or(0.0, |peak| peak.upper);
        let planned = now.max(ahead);
        let unbounded = replicas_for(planned, target.capacity_per_replica);
        let with_tolerance = replicas_for(planned * (1.0 + TOLERANCE), target.capacity_per_replica);
        let within = |replicas: u32| replicas.clamp(target.replicas_min, target.replicas_max);
        Need {
            unbounded,
            replicas: within(unbounded),
            with_tolerance: within(with_tolerance),
            by_forecast: ahead > now,
        }
    }
}

/// Returns the smallest number of replicas that holds a load; the largest there is where none does.
fn replicas_for(load: f64, capacity: f64) -> u32 {
    // A load of exactly n replicas must not ask for n + 1 because of the last bit of a division. The cast saturates.
    (load / capacity - 1e-9).ceil().max(0.0) as u32
}

/// Returns the number to ask for: up at once, down after the stabilisation window.
fn settle(target: &ScalingTarget, now: EventTime, need: &Need, state: &mut TargetState) -> u32 {
    state.observe(now, need.with_tolerance, target.cooldown);
    // The bounds are the operator's word and hold at once, also where they changed since the last plan.
    let asked = state.desired_replicas.map(|asked| asked.clamp(target.replicas_min, target.replicas_max));
    let Some(asked) = asked.filter(|asked| need.replicas <= *asked) else {
        state.lower_since = None;
        return need.replicas;
    };
    if need.with_tolerance >= asked {
        state.lower_since = None;
        return asked;
    }
    let lower_since = *state.lower_since.get_or_insert(now);
    if now.since(lower_since) < target.cooldown {
        return asked;
    }
    state.needs.front().map_or(asked, |(_, highest)| asked.min(*highest))
}

fn abstain(target: &ScalingTarget, now: EventTime, why: &Unknown, next: &mut TargetState) -> Decision {
    next.abstention = Some(why.abstention);
    next.epoch = next.epoch.saturating_add(1);
    Decision {
        id: Decision::id_of(&target.target, next.epoch, now),
        target: target.target.clone(),
        epoch: next.epoch,
        at: now,
        desired_replicas: None,
        abstention: Some(why.abstention),
        reason: reason::of_abstention(target, now, why, next.desired_replicas),
        confidence: 0.0,
        cost_per_hour: None,
        evidence: Evidence {
            load: why.newest.map(|(_, load)| load).filter(|load| load.is_finite()),
            load_at: why.newest.map(|(at, _)| at),
            forecast_upper: None,
            forecast_issued_at: None,
            capacity_per_replica: target.capacity_per_replica,
            previous_replicas: next.desired_replicas,
        },
    }
}

fn confidence(target: &ScalingTarget, now: EventTime, load: &Load, need: &Need) -> f64 {
    let age = now.since(load.at).as_secs_f64() / target.stale_after.as_secs_f64();
    let freshness = 1.0 - age / 2.0;
    let rows = load.rows as f64;
    let history = rows / (rows + target.history_min as f64);
    let forecast = load.peak.map_or(0.5, |peak| {
        let larger = peak.upper.max(load.current);
        let spread = if larger > 0.0 { (peak.upper - load.current).abs() / larger } else { 0.0 };
        (1.0 / (1.0 + spread)).max(0.5)
    });
    let reach = if need.unbounded > need.replicas { f64::from(need.replicas) / f64::from(need.unbounded) } else { 1.0 };
    // Cut to a thousandth: more digits would claim a precision that none of the shares has.
    ((freshness * history * forecast * reach).clamp(0.0, 1.0) * 1e3).floor() / 1e3
}

fn cost(target: &ScalingTarget, replicas: u32) -> Option<f64> {
    (target.cost_per_replica_hour > 0.0).then(|| f64::from(replicas) * target.cost_per_replica_hour)
}

/// Durations as people write them: `90s`, `5m`.
mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|_| de::Error::custom(format!("expected a duration such as 90s or 5m, got {text:?}")))
    }
}

/// What a target is given where the configuration is silent.
mod defaults {
    use std::time::Duration;

    pub fn utilization() -> f64 {
        0.8
    }

    pub fn replicas_min() -> u32 {
        1
    }

    pub fn startup() -> Duration {
        Duration::from_secs(60)
    }

    pub fn cooldown() -> Duration {
        Duration::from_secs(300)
    }

    pub fn stale_after() -> Duration {
        Duration::from_secs(180)
    }

    pub fn history_min() -> usize {
        3
    }
}

#[cfg(test)]
mod tests;
