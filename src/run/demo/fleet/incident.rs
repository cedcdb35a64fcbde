//! When what goes wrong in the simulated fleet. Follows from the seed alone; it changes nothing itself, the fleet asks
//! it what is on.

use std::cmp::Reverse;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::{COMPONENTS, Shape};
use crate::model::time::EventTime;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Requests are slow after a deployment, until it is rolled back.
    LatencyRegression,
    /// One replica grows slower and busier than its peers.
    ReplicaDrift,
    /// The load of a service rises to a multiple.
    LoadRamp,
    /// Most runs of a workflow fail.
    WorkflowFailure,
    /// A component reports no health.
    ComponentUnhealthy,
}

impl Kind {
    pub const ALL: [Kind; 5] =
        [Kind::LatencyRegression, Kind::ReplicaDrift, Kind::LoadRamp, Kind::WorkflowFailure, Kind::ComponentUnhealthy];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::LatencyRegression => "latency_regression",
            Kind::ReplicaDrift => "replica_drift",
            Kind::LoadRamp => "load_ramp",
            Kind::WorkflowFailure => "workflow_failure",
            Kind::ComponentUnhealthy => "component_unhealthy",
        }
    }

    /// Long enough for the shipped rules, whose condition must hold up to ten minutes, plus the view's own window.
    fn duration(self) -> Duration {
        let minutes = match self {
            Kind::LatencyRegression => 7,
            Kind::ReplicaDrift => 8,
            Kind::LoadRamp => 8,
            Kind::WorkflowFailure => 17,
            Kind::ComponentUnhealthy => 3,
        };
        Duration::from_secs(minutes * 60)
    }
}

/// An incident as it was injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    pub kind: &'static str,
    /// The service, replica, workflow or component that it hits.
    pub target: String,
    pub start: EventTime,
    /// Exclusive.
    pub end: EventTime,
}

impl Injected {
    /// Returns how much of the incident is over, in [0, 1].
    pub fn progress(&self, at: EventTime) -> f64 {
        let whole = self.end.since(self.start).as_secs_f64().max(1.0);
        (at.since(self.start).as_secs_f64() / whole).min(1.0)
    }
}

/// A deployment that an incident brings with it.
pub struct Change {
    pub service: String,
    pub predicate: &'static str,
}

/// The incidents of one seed, drawn a cycle ahead.
#[derive(Debug)]
pub struct Schedule {
    rng: StdRng,
    start: EventTime,
    warmup: Duration,
    cycle: Duration,
    cycles_drawn: u32,
    begun: Vec<Injected>,
    /// Those of them that have not ended.
    on: Vec<Injected>,
    /// By start, latest first.
    coming: Vec<Injected>,
    /// Regressions that are still to be rolled back.
    to_roll_back: Vec<(EventTime, String)>,
}

impl Schedule {
    pub fn new(seed: u64, shape: &Shape, start: EventTime) -> Self {
        // A stream of its own, so that another amount of traffic does not move the incidents.
        let rng = StdRng::seed_from_u64(seed ^ 0x0049_6e63_6964_656e);
        Schedule {
            rng,
            start,
            warmup: shape.warmup,
            cycle: shape.cycle.max(Duration::from_secs(1)),
            cycles_drawn: 0,
            begun: Vec::new(),
            on: Vec::new(),
            coming: Vec::new(),
            to_roll_back: Vec::new(),
        }
    }

    pub fn begun(&self) -> &[Injected] {
        &self.begun
    }

    /// Begins what is due, and returns the deployments that go with it. `services` carry their number of replicas.
    pub fn advance(&mut self, at: EventTime, services: &[(&str, usize)], workflows: &[&str]) -> Vec<Change> {
        while at >= self.start + self.warmup + self.cycle.saturating_mul(self.cycles_drawn) {
            self.draw_cycle(services, workflows);
        }
        let mut changes = Vec::new();
        while let Some(incident) = self.coming.pop_if(|incident| incident.start <= at) {
            if incident.kind == Kind::LatencyRegression.as_str() {
                changes.push(Change { service: incident.target.clone(), predicate: "upgraded" });
                self.to_roll_back.push((incident.end, incident.target.clone()));
            }
            self.on.push(incident.clone());
            self.begun.push(incident);
        }
        self.on.retain(|incident| at < incident.end);
        let due = self.to_roll_back.extract_if(.., |(end, _)| *end <= at);
        changes.extend(due.map(|(_, service)| Change { service, predicate: "rolledback" }));
        changes
    }

    /// Returns the incident of a kind that is on and hits a target.
    pub fn active(&self, kind: Kind, target: &str) -> Option<&Injected> {
        self.on.iter().find(|incident| incident.kind == kind.as_str() && incident.target == target)
    }

    /// Returns whether anything that is on hits a service or one of its replicas.
    pub fn involves(&self, service: &str) -> bool {
        self.on.iter().any(|incident| incident.target.starts_with(service))
    }

    /// Draws one incident of each kind into the next cycle: each in a slot of its own, so that starts are apart, and
    /// on a service of its own where there are enough.
    fn draw_cycle(&mut self, services: &[(&str, usize)], workflows: &[&str]) {
        let from = self.start + self.warmup + self.cycle.saturating_mul(self.cycles_drawn);
        self.cycles_drawn += 1;
        let mut kinds = Kind::ALL;
        kinds.shuffle(&mut self.rng);
        let mut free: Vec<_> = services.to_vec();
        free.shuffle(&mut self.rng);
        let slot = self.cycle / Kind::ALL.len() as u32;
        for (number, kind) in (0..).zip(kinds) {
            let within = self.rng.random_range(0.0..0.25);
            let mut service = || free.pop().or_else(|| services.first().copied());
            let target = match kind {
                Kind::LatencyRegression | Kind::LoadRamp => service().map(|(name, _)| name.to_owned()),
                Kind::ReplicaDrift => {
                    service().map(|(name, replicas)| format!("{name}-{}", self.rng.random_range(1..=replicas.max(1))))
                }
                Kind::WorkflowFailure => workflows.choose(&mut self.rng).map(|name| (*name).to_owned()),
                Kind::ComponentUnhealthy => {
                    let components: Vec<&str> = COMPONENTS.into_iter().chain(service().map(|(name, _)| name)).collect();
                    components.choose(&mut self.rng).map(|name| (*name).to_owned())
                }
            };
            let start = (from + slot * number + slot.mul_f64(within)).floor(Duration::from_secs(1));
            let end = start + kind.duration();
            self.coming.extend(target.map(|target| Injected { kind: kind.as_str(), target, start, end }));
        }
        self.coming.sort_by_key(|incident| Reverse(incident.start));
    }
}
