//! Telemetry: the registry of our own metrics, the page a scraper reads, and the set-up of logs.
//!
//! The only user of prometheus-client. Knows nothing of the other rooms: they hold a clone of [`Telemetry`] and tell it
//! numbers and names. It must never decide anything, block on I/O other than `/proc`, or grow without bound.

mod exposition;
pub mod instruments;
mod labels;
pub mod latest;
pub mod logs;
mod process;
mod samples;

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use instruments::{Broker, Decisions, Http, Input, Queues, Reloads, Sql, Stages, Store, Views};
use latest::Latest;
pub use samples::Sample;

/// What every metric of ours begins with; those of the process keep the names that all exporters share.
const PREFIX: &str = "bellwether";

/// How much telemetry may keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most latest values (of views, scores, forecasts, alerts, decisions) on the page at once.
    pub latest_values_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { latest_values_max: 20_000 }
    }
}

/// The two text formats that scrapers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4, which every scraper understands.
    Text,
}

impl Exposition {
    /// Returns the media type to answer with.
    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Exposition::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Our own metrics, grouped by what they measure. A clone is cheap and counts into the same registry.
///
/// Names below are without the prefix `bellwether_` and, for counters, the suffix `_total`. Labels come from the
/// configuration (inputs, views, rules, targets), from closed lists (stages, outcomes) or from the broker
/// (partitions), so the page is bounded.
#[derive(Clone)]
pub struct Telemetry {
    /// Records on their way in.
    pub input: Input,
    /// The broker and our distance to its newest record.
    pub broker: Broker,
    /// Continuous queries.
    pub views: Views,
    /// How long each stage of a record's way takes.
    pub stages: Stages,
    /// The time-series store.
    pub store: Store,
    /// Bounded queues between stages.
    pub queues: Queues,
    /// Ad hoc queries.
    pub sql: Sql,
    /// HTTP requests.
    pub http: Http,
    /// Reloads of the configuration.
    pub reloads: Reloads,
    /// What the planner decided.
    pub decisions: Decisions,
    /// The newest value of everything the loop computes.
    pub latest: Latest,
    registry: Arc<Registry>,
}

impl Telemetry {
    /// Makes a registry with every instrument in it.
    pub fn new(settings: &Settings) -> Self {
        let mut root = Registry::default();
        root.register_collector(Box::new(process::Process));
        let registry = root.sub_registry_with_prefix(PREFIX);
        register_build_info(registry);
        let input = Input::register(registry);
        let broker = Broker::register(registry);
        let views = Views::register(registry);
        let stages = Stages::register(registry);
        let store = Store::register(registry);
        let queues = Queues::register(registry);
        let sql = Sql::register(registry);
        let http = Http::register(registry);
        let reloads = Reloads::register(registry);
        let decisions = Decisions::register(registry);
        let latest = Latest::register(registry, settings.latest_values_max);
        let registry = Arc::new(root);
        Telemetry { input, broker, views, stages, store, queues, sql, http, reloads, decisions, latest, registry }
    }

    /// Returns the page in OpenMetrics text, closed by `# EOF`.
    pub fn render(&self) -> String {
        self.render_as(Exposition::OpenMetrics)
    }

    /// Returns the page in the format asked for.
    pub fn render_as(&self, exposition: Exposition) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to a String cannot fail, nor do our collectors");
        match exposition {
            Exposition::OpenMetrics => page,
            Exposition::Text => exposition::to_text(&page),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new(&Settings::default())
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// Registers `build_info`, a gauge that is always 1 and carries the version in its labels.
///
/// A gauge, not an OpenMetrics info: the older text format has no such type, and the page is the same in both.
fn register_build_info(registry: &mut Registry) {
    let info = Family::<Vec<(&'static str, &'static str)>, Gauge>::default();
    let revision = option_env!("BELLWETHER_REVISION").unwrap_or("unknown");
    info.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION")), ("revision", revision)]).set(1);
    registry.register("build_info", "Version of the running program; always 1", info);
}

#[cfg(test)]
mod tests;
