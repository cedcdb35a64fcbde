//! A simulated fleet: services with replicas, workflows with phases, deployments, a daily rhythm, and incidents whose
//! time and target are known. Everything follows from the seed and the start: it reads no clock, and how the time is
//! cut into calls of [`Fleet::advance`] changes no byte.

use std::f64::consts::TAU;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::model::time::EventTime;

mod incident;
mod payload;

pub use incident::{Injected, Kind};

pub const METRICS: &str = "fleet.metrics";
pub const EVENTS: &str = "fleet.events";
pub const CLOUDEVENTS: &str = "fleet.cloudevents";
pub const OTLP: &str = "fleet.otlp";
pub const INFLUX: &str = "fleet.influx";

/// What the fleet is made of. Counts beyond the names there are (twelve services, eight workflows) are cut to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub services: usize,
    pub replicas_min: usize,
    pub replicas_max: usize,
    pub workflows: usize,
    /// Samples of requests per service and second, on average over a day; the real traffic would be a multiple.
    pub requests_per_second: f64,
    /// Average time between two runs of one workflow.
    pub workflow_every: Duration,
    /// How long the fleet's day is: the period of its load.
    pub day: Duration,
    /// How long nothing goes wrong at first, so that there is a normal to depart from.
    pub warmup: Duration,
    /// The time within which each kind of incident happens once.
    pub cycle: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Shape {
            services: 6,
            replicas_min: 3,
            replicas_max: 5,
            workflows: 4,
            requests_per_second: 3.0,
            workflow_every: Duration::from_secs(12),
            day: minutes(10),
            warmup: minutes(10),
            cycle: minutes(60),
        }
    }
}

/// One record that the fleet sends.
#[derive(Clone, Debug, PartialEq)]
pub struct Emission {
    pub topic: &'static str,
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub at: EventTime,
}

/// The fleet at one moment of its time.
#[derive(Debug)]
pub struct Fleet {
    rng: StdRng,
    shape: Shape,
    start: EventTime,
    /// Whole seconds since the start that have been played.
    played: u64,
    services: Vec<Service>,
    workflows: Vec<Workflow>,
    schedule: incident::Schedule,
    /// Events sent, for their ids.
    events: u64,
}

impl Fleet {
    pub fn new(seed: u64, shape: Shape, start: EventTime) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let services: Vec<Service> =
            SERVICES.iter().take(shape.services.max(1)).map(|name| Service::new(name, &shape, &mut rng)).collect();
        let workflows =
            WORKFLOWS.iter().take(shape.workflows).map(|(name, phases)| Workflow::new(name, phases)).collect();
        let schedule = incident::Schedule::new(seed, &shape, start);
        Fleet { rng, shape, start, played: 0, services, workflows, schedule, events: 0 }
    }

    /// Plays the whole seconds up to `to`, exclusive, and returns what was sent, in order of time.
    pub fn advance(&mut self, to: EventTime) -> Vec<Emission> {
        let seconds = to.since(self.start).as_secs();
        let mut sent = Vec::new();
        while self.played < seconds {
            let first = sent.len();
            self.play_second(self.start + Duration::from_secs(self.played), &mut sent);
            if let Some(second) = sent.get_mut(first..) {
                second.sort_by_key(|emission| emission.at);
            }
            self.played += 1;
        }
        sent
    }

    /// Returns the incidents that have begun, in order of their start.
    pub fn injected(&self) -> &[Injected] {
        self.schedule.begun()
    }

    /// Returns the names of the services, for scaling targets.
    pub fn services(&self) -> impl Iterator<Item = &'static str> {
        self.services.iter().map(|service| service.name)
    }

    fn play_second(&mut self, at: EventTime, sent: &mut Vec<Emission>) {
        if self.played == 0 {
            for index in 0..self.services.len() {
                self.deploy(index, "deployed", at, sent);
            }
        }
        let names: Vec<(&str, usize)> = self.services.iter().map(|s| (s.name, s.replicas.len())).collect();
        let workflows: Vec<&str> = self.workflows.iter().map(|w| w.name).collect();
        for change in self.schedule.advance(at, &names, &workflows) {
            if let Some(index) = self.services.iter().position(|service| service.name == change.service) {
                self.deploy(index, change.predicate, at, sent);
            }
        }
        self.deploy_by_chance(at, sent);
        for index in 0..self.services.len() {
            self.requests(index, at, sent);
        }
        if self.played.is_multiple_of(GAUGES_EVERY_SECS) {
            self.gauges(at, sent);
        }
        for index in 0..self.workflows.len() {
            self.workflow(index, at, sent);
        }
    }

    /// One harmless upgrade a day or so: a deployment alone is no incident.
    fn deploy_by_chance(&mut self, at: EventTime, sent: &mut Vec<Emission>) {
        let by_chance = self.rng.random_bool((1.0 / self.shape.day.as_secs_f64().max(1.0)).min(1.0));
        let index = self.rng.random_range(0..self.services.len());
        if by_chance && self.played > 0 && self.services.get(index).is_some_and(|s| !self.schedule.involves(s.name)) {
            self.deploy(index, "upgraded", at, sent);
        }
    }

    fn deploy(&mut self, index: usize, predicate: &str, at: EventTime, sent: &mut Vec<Emission>) {
        let Some(service) = self.services.get_mut(index) else { return };
        match predicate {
            "upgraded" => service.release += 1,
            "rolledback" => service.release = service.release.saturating_sub(1),
            _ => {}
        }
        self.events += 1;
        sent.push(payload::deployment(self.events, service.name, service.release, predicate, at));
    }

    /// The load of a service relative to its average: the rhythm of the day, noise, and a ramp where one is on.
    fn relative_load(&mut self, index: usize, at: EventTime) -> f64 {
        let Some(service) = self.services.get(index) else { return 0.0 };
        let day = self.shape.day.as_secs_f64().max(1.0);
        let rhythm = 1.0 + 0.45 * (TAU * (at.since(self.start).as_secs_f64() / day + service.phase)).sin();
        let ramp = self.schedule.active(Kind::LoadRamp, service.name);
        let ramp = ramp.map_or(1.0, |incident| 1.0 + 2.5 * (2.0 * incident.progress(at)).min(1.0));
        rhythm * ramp * (1.0 + 0.05 * normal(&mut self.rng)).max(0.1)
    }

    fn requests(&mut self, index: usize, second: EventTime, sent: &mut Vec<Emission>) {
        let load = self.relative_load(index, second);
        let Some(service) = self.services.get_mut(index) else { return };
        service.load += (load - service.load) * 0.2;
        let regression = self.schedule.active(Kind::LatencyRegression, service.name).is_some();
        let unhealthy = self.schedule.active(Kind::ComponentUnhealthy, service.name).is_some();
        // A busier service is slower, slightly; a regression brings the median to 1.2 s and more.
        let median = service.median_secs * (1.0 + 0.15 * (service.load - 1.0).max(0.0));
        let median = if regression { (median * 10.0).max(1.2) } else { median };
        let error_share = if unhealthy { 0.15 } else { service.error_share };
        for _ in 0..poisson(&mut self.rng, self.shape.requests_per_second * load) {
            let at = second + Duration::from_micros(self.rng.random_range(0..1_000_000));
            let Some(replica) = service.replicas.choose(&mut self.rng) else { return };
            let drift = self.schedule.active(Kind::ReplicaDrift, &replica.name);
            let drift = drift.map_or(1.0, |incident| 1.0 + 2.0 * (2.0 * incident.progress(second)).min(1.0));
            let duration = median * drift * (0.35 * normal(&mut self.rng)).exp();
            let status = if self.rng.random_bool(error_share) { "500" } else { "200" };
            sent.push(payload::request(service.name, &replica.name, status, duration, at));
        }
    }

    /// Health, use of resources and depth of queues, of the whole fleet.
    fn gauges(&mut self, at: EventTime, sent: &mut Vec<Emission>) {
        for service in &self.services {
            let healthy = self.schedule.active(Kind::ComponentUnhealthy, service.name).is_none();
            sent.push(payload::health(service.name, healthy, at));
            for replica in &service.replicas {
                let drift = self.schedule.active(Kind::ReplicaDrift, &replica.name);
                let drift = drift.map_or(0.0, |incident| 0.35 * (2.0 * incident.progress(at)).min(1.0));
                let cpu = 0.25 * service.load.min(2.2) + replica.cpu_bias + drift + 0.02 * normal(&mut self.rng);
                let memory = replica.memory + 0.5 * drift + 0.01 * normal(&mut self.rng);
                for (resource, ratio) in [("cpu", cpu), ("memory", memory)] {
                    sent.push(payload::resource_use(
                        service.name,
                        &replica.name,
                        resource,
                        ratio.clamp(0.01, 0.85),
                        at,
                    ));
                }
            }
            let depth = (4.0 * service.load * service.load * (0.2 * normal(&mut self.rng)).exp()).round();
            sent.push(payload::queue_depth(service.name, depth, at));
        }
        for component in COMPONENTS {
            let healthy = self.schedule.active(Kind::ComponentUnhealthy, component).is_none();
            sent.push(payload::health(component, healthy, at));
        }
    }

    /// Ends a run of a workflow now and then: its tasks one after the other, and then itself.
    fn workflow(&mut self, index: usize, second: EventTime, sent: &mut Vec<Emission>) {
        let Some(workflow) = self.workflows.get_mut(index) else { return };
        if !self.rng.random_bool((1.0 / self.shape.workflow_every.as_secs_f64().max(1.0)).min(1.0)) {
            return;
        }
        workflow.runs += 1;
        let failing = self.schedule.active(Kind::WorkflowFailure, workflow.name).is_some();
        let failed = self.rng.random_bool(if failing { 0.7 } else { 0.02 });
        let last = if failed { self.rng.random_range(0..workflow.phases.len()) } else { workflow.phases.len() - 1 };
        let run = payload::Run { workflow: workflow.name, number: workflow.runs };
        let step = Duration::from_millis(1000 / (workflow.phases.len() as u64 + 2));
        let (mut at, mut total_ms) = (second, 0.0);
        for (number, phase) in workflow.phases.iter().enumerate().take(last + 1) {
            let duration_ms = (2_000.0 + 1_500.0 * number as f64) * (0.25 * normal(&mut self.rng)).exp();
            total_ms += duration_ms;
            at = at + step;
            sent.push(run.task(phase, !(failed && number == last), duration_ms, at));
        }
        sent.push(run.completed(!failed, total_ms, at + step));
    }
}

const GAUGES_EVERY_SECS: u64 = 5;

const SERVICES: [&str; 12] = [
    "checkout", "catalog", "payments", "search", "accounts", "shipping", "pricing", "reviews", "media", "cart",
    "notify", "fraud",
];

/// What the fleet stands on besides its services.
const COMPONENTS: [&str; 2] = ["scheduler", "artifact-store"];

const WORKFLOWS: [(&str, &[&str]); 8] = [
    ("nightly-etl", &["extract", "transform", "load"]),
    ("train-ranker", &["prepare", "fit", "evaluate", "publish"]),
    ("release-train", &["build", "test", "deploy"]),
    ("billing-run", &["collect", "rate", "invoice"]),
    ("index-rebuild", &["scan", "index", "swap"]),
    ("backup", &["snapshot", "upload", "verify"]),
    ("report-pack", &["query", "render", "send"]),
    ("image-scan", &["pull", "scan", "report"]),
];

#[derive(Debug)]
struct Service {
    name: &'static str,
    replicas: Vec<Replica>,
    /// Median duration of a request at average load, in seconds.
    median_secs: f64,
    error_share: f64,
    /// Where in its day the service is at the start, as a share of the day.
    phase: f64,
    /// Smoothed load relative to the average.
    load: f64,
    /// The minor version in production.
    release: u32,
}

#[derive(Debug)]
struct Replica {
    name: String,
    cpu_bias: f64,
    memory: f64,
}

impl Service {
    fn new(name: &'static str, shape: &Shape, rng: &mut StdRng) -> Self {
        let fewest = shape.replicas_min.max(1);
        let count = rng.random_range(fewest..=shape.replicas_max.max(fewest));
        let memory = rng.random_range(0.35..0.5);
        let replicas = (1..=count).map(|number| Replica {
            name: format!("{name}-{number}"),
            cpu_bias: rng.random_range(0.0..0.03),
            memory: memory + rng.random_range(0.0..0.03),
        });
        let replicas = replicas.collect();
        Service {
            name,
            replicas,
            median_secs: rng.random_range(0.04..0.12),
            error_share: rng.random_range(0.002..0.01),
            phase: rng.random_range(0.0..0.15),
            load: 1.0,
            release: 1,
        }
    }
}

#[derive(Debug)]
struct Workflow {
    name: &'static str,
    phases: &'static [&'static str],
    runs: u64,
}

impl Workflow {
    fn new(name: &'static str, phases: &'static [&'static str]) -> Self {
        Workflow { name, phases, runs: 0 }
    }
}

/// Draws from the standard normal distribution, by Box and Muller.
fn normal(rng: &mut StdRng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
}

/// Draws from the Poisson distribution, by Knuth's product of uniforms; fit for the small means of one second.
fn poisson(rng: &mut StdRng, mean: f64) -> usize {
    let limit = (-mean.clamp(0.0, 500.0)).exp();
    let (mut drawn, mut product) = (0, rng.random::<f64>());
    while product > limit {
        drawn += 1;
        product *= rng.random::<f64>();
    }
    drawn
}

#[cfg(test)]
mod tests;
