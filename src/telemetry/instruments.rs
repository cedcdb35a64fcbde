//! Counters, gauges and histograms of our own health, grouped by what they measure, behind methods that say what happened.
//!
//! Every method is cheap but looks a label up under a lock: call once per batch, not once per record.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{
    DecisionLabel, InputLabel, OutcomeLabel, PartitionLabel, QueueLabel, RejectedLabel, RequestLabel, StageLabel,
    ViewLabel,
};

/// Upper bounds of the latency buckets, seconds: from a decode of one batch to a query at its time limit.
const LATENCY_BUCKETS_SECS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Records on their way in, by input.
///
/// `records_consumed`, `records_decoded`, `records_rejected{reason}`, `input_bytes`, `series`, `series_refused{input}`.
#[derive(Clone, Debug, Default)]
pub struct Input {
    consumed: Family<InputLabel, Counter>,
    bytes: Family<InputLabel, Counter>,
    decoded: Family<InputLabel, Counter>,
    rejected: Family<RejectedLabel, Counter>,
    series: Gauge,
    series_refused: Family<InputLabel, Counter>,
}

impl Input {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let input = Input::default();
        registry.register("records_consumed", "Records read from the broker", input.consumed.clone());
        let help = "Bytes of keys and values read from the broker";
        registry.register_with_unit("input", help, Unit::Bytes, input.bytes.clone());
        registry.register("records_decoded", "Records decoded in full", input.decoded.clone());
        let help = "Records that went to the dead-letter topic, by reason";
        registry.register("records_rejected", help, input.rejected.clone());
        registry.register("series", "Distinct series known", input.series.clone());
        let help = "Records refused because the limit on series was reached";
        registry.register("series_refused", help, input.series_refused.clone());
        input
    }

    /// Makes the counters of an input appear at zero, so that a rate sees its first record.
    pub fn declare(&self, input: &str) {
        self.consumed(input, 0, 0);
        self.decoded(input, 0);
        self.series_refused(input, 0);
    }

    pub fn consumed(&self, input: &str, records: u64, bytes: u64) {
        let label = InputLabel::new(input);
        self.consumed.get_or_create(&label).inc_by(records);
        self.bytes.get_or_create(&label).inc_by(bytes);
    }

    pub fn decoded(&self, input: &str, records: u64) {
        self.decoded.get_or_create(&InputLabel::new(input)).inc_by(records);
    }

    /// Counts rejected records. `reason` is the name of a kind of rejection, never its message.
    pub fn rejected(&self, input: &str, reason: &'static str, records: u64) {
        let label = RejectedLabel { input: input.to_owned(), reason };
        self.rejected.get_or_create(&label).inc_by(records);
    }

    pub fn series_refused(&self, input: &str, records: u64) {
        self.series_refused.get_or_create(&InputLabel::new(input)).inc_by(records);
    }

    pub fn set_series(&self, series: usize) {
        self.series.set(gauge_value(series));
    }
}

/// The broker: `broker_up`, `consumer_lag_records{topic,partition}`, `records_deleted_unread{input}`.
#[derive(Clone, Debug, Default)]
pub struct Broker {
    up: Gauge,
    lag: Family<PartitionLabel, Gauge>,
    deleted: Family<InputLabel, Counter>,
}

impl Broker {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let broker = Broker::default();
        registry.register("broker_up", "Whether a broker answers (1) or not (0)", broker.up.clone());
        let help = "Records between our position and the end of the partition";
        registry.register("consumer_lag_records", help, broker.lag.clone());
        let help = "Records that the broker deleted before they were read, passed over as kafka.deleted_unread says";
        registry.register("records_deleted_unread", help, broker.deleted.clone());
        broker
    }

    pub fn set_up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    pub fn set_lag(&self, topic: &str, partition: i32, records: u64) {
        let label = PartitionLabel { topic: topic.to_owned(), partition };
        self.lag.get_or_create(&label).set(i64::try_from(records).unwrap_or(i64::MAX));
    }

    pub fn deleted_unread(&self, input: &str, records: u64) {
        self.deleted.get_or_create(&InputLabel::new(input)).inc_by(records);
    }

    /// Forgets a partition that was revoked: its lag is another instance's to tell.
    pub fn forget(&self, topic: &str, partition: i32) {
        self.lag.remove(&PartitionLabel { topic: topic.to_owned(), partition });
    }
}

/// Continuous queries: `late_rows{view}`, `rows_emitted{view}`, `rows_refused{view}`, `state_bytes{view}`,
/// `watermark_delay_seconds{view}`.
///
/// No name here begins with `view_`: those belong to the latest values of views.
#[derive(Clone, Debug, Default)]
pub struct Views {
    late: Family<ViewLabel, Counter>,
    emitted: Family<ViewLabel, Counter>,
    corrected: Family<ViewLabel, Counter>,
    watermark_delay: Family<ViewLabel, Gauge<f64, AtomicU64>>,
    state_bytes: Family<ViewLabel, Gauge<u64, AtomicU64>>,
    refused: Family<ViewLabel, Counter>,
}

impl Views {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let views = Views::default();
        let help = "Rows that came after their window had closed, kept in the late output";
        registry.register("late_rows", help, views.late.clone());
        registry.register("rows_emitted", "Rows emitted by closed windows", views.emitted.clone());
        let help = "Windows computed anew with rows that had come too late for them";
        registry.register("windows_corrected", help, views.corrected.clone());
        let help = "Rows left out because the view's open windows had reached their bound of bytes";
        registry.register("rows_refused", help, views.refused.clone());
        let help = "Bytes of open windows; what several views share is counted with each";
        registry.register_with_unit("state", help, Unit::Bytes, views.state_bytes.clone());
        let help = "How far the watermark stands behind the newest arrival";
        registry.register_with_unit("watermark_delay", help, Unit::Seconds, views.watermark_delay.clone());
        views
    }

    /// Makes the counters of a view appear at zero.
    pub fn declare(&self, view: &str) {
        self.late(view, 0);
        self.emitted(view, 0);
    }

    pub fn late(&self, view: &str, rows: u64) {
        self.late.get_or_create(&ViewLabel::new(view)).inc_by(rows);
    }

    pub fn emitted(&self, view: &str, rows: u64) {
        self.emitted.get_or_create(&ViewLabel::new(view)).inc_by(rows);
    }

    pub fn corrected(&self, view: &str, windows: u64) {
        self.corrected.get_or_create(&ViewLabel::new(view)).inc_by(windows);
    }

    /// Shows what a view's open windows hold, and how many rows it refused in all.
    pub fn set_state(&self, view: &str, bytes: u64, refused: u64) {
        self.state_bytes.get_or_create(&ViewLabel::new(view)).set(bytes);
        self.refused.get_or_create(&ViewLabel::new(view)).inner().fetch_max(refused, Ordering::Relaxed);
    }

    /// Drops what is said of a view that is no more.
    pub fn forget(&self, view: &str) {
        let label = ViewLabel::new(view);
        self.late.remove(&label);
        self.emitted.remove(&label);
        self.corrected.remove(&label);
        self.watermark_delay.remove(&label);
        self.state_bytes.remove(&label);
        self.refused.remove(&label);
    }

    pub fn set_watermark_delay(&self, view: &str, delay: Duration) {
        self.watermark_delay.get_or_create(&ViewLabel::new(view)).set(delay.as_secs_f64());
    }
}

/// A stage of a record's way, or of a query's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Decode,
    Window,
    StoreCommit,
    EffectCommit,
    Query,
}

impl Stage {
    const ALL: [Stage; 5] = [Stage::Decode, Stage::Window, Stage::StoreCommit, Stage::EffectCommit, Stage::Query];

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Window => "window",
            Stage::StoreCommit => "store_commit",
            Stage::EffectCommit => "effect_commit",
            Stage::Query => "query",
        }
    }
}

/// How long stages take: the histogram `stage_duration_seconds{stage}`.
#[derive(Clone, Debug)]
pub struct Stages {
    duration: Family<StageLabel, Histogram>,
}

impl Stages {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS_SECS);
        let stages = Stages { duration: Family::new_with_constructor(new) };
        for stage in Stage::ALL {
            drop(stages.duration.get_or_create(&StageLabel { stage: stage.as_str() }));
        }
        let help = "How long one batch, window, commit or query took in its stage";
        registry.register_with_unit("stage_duration", help, Unit::Seconds, stages.duration.clone());
        stages
    }

    pub fn observe(&self, stage: Stage, took: Duration) {
        self.duration.get_or_create(&StageLabel { stage: stage.as_str() }).observe(took.as_secs_f64());
    }

    /// Starts a measurement that is taken when the timer is dropped.
    pub fn time(&self, stage: Stage) -> StageTimer {
        StageTimer { stages: self.clone(), stage, started: Instant::now() }
    }
}

/// Observes the time from its making to its drop.
#[derive(Debug)]
#[must_use = "a timer that is dropped at once measures nothing"]
pub struct StageTimer {
    stages: Stages,
    stage: Stage,
    started: Instant,
}

impl Drop for StageTimer {
    fn drop(&mut self) {
        self.stages.observe(self.stage, self.started.elapsed());
    }
}

/// The store: `store_commits`, `store_commit_failures`, `store_head_rows`, `store_head_bytes`, `store_merges`, `store_files`.
#[derive(Clone, Debug, Default)]
pub struct Store {
    commits: Counter,
    commit_failures: Counter,
    head_rows: Gauge,
    head_bytes: Gauge,
    merges: Counter,
    files: Gauge,
}

impl Store {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let store = Store::default();
        registry.register("store_commits", "Commits of rows with their offsets", store.commits.clone());
        let help = "Commits that failed and were tried again";
        registry.register("store_commit_failures", help, store.commit_failures.clone());
        registry.register("store_head_rows", "Rows accepted and not yet committed", store.head_rows.clone());
        let help = "Memory held by rows not yet committed";
        registry.register_with_unit("store_head", help, Unit::Bytes, store.head_bytes.clone());
        registry.register("store_merges", "Times that small files were merged into one", store.merges.clone());
        registry.register("store_files", "Files of all tables, as of the last upkeep", store.files.clone());
        store
    }

    pub fn committed(&self) {
        self.commits.inc();
    }

    pub fn commit_failed(&self) {
        self.commit_failures.inc();
    }

    pub fn merged(&self) {
        self.merges.inc();
    }

    pub fn set_files(&self, files: usize) {
        self.files.set(gauge_value(files));
    }

    pub fn set_head(&self, rows: usize, bytes: usize) {
        self.head_rows.set(gauge_value(rows));
        self.head_bytes.set(gauge_value(bytes));
    }
}

/// Bounded queues between stages: `queue_depth{queue}`.
#[derive(Clone, Debug, Default)]
pub struct Queues {
    depth: Family<QueueLabel, Gauge>,
}

impl Queues {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let queues = Queues::default();
        registry.register("queue_depth", "Items waiting in a bounded queue", queues.depth.clone());
        queues
    }

    pub fn set_depth(&self, queue: &'static str, items: usize) {
        self.depth.get_or_create(&QueueLabel { queue }).set(gauge_value(items));
    }
}

/// How an ad hoc query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryOutcome {
    Ok,
    /// The query itself was at fault.
    User,
    /// A limit on rows, memory or time stopped it.
    Limit,
    /// Too many others were running.
    Busy,
    Internal,
    /// Whoever asked went away first.
    Cancelled,
}

impl QueryOutcome {
    const ALL: [QueryOutcome; 6] = [
        QueryOutcome::Ok,
        QueryOutcome::User,
        QueryOutcome::Limit,
        QueryOutcome::Busy,
        QueryOutcome::Internal,
        QueryOutcome::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            QueryOutcome::Ok => "ok",
            QueryOutcome::User => "user",
            QueryOutcome::Limit => "limit",
            QueryOutcome::Busy => "busy",
            QueryOutcome::Internal => "internal",
            QueryOutcome::Cancelled => "cancelled",
        }
    }
}

/// Ad hoc queries: `sql_queries{outcome}`, `sql_queries_running`.
#[derive(Clone, Debug, Default)]
pub struct Sql {
    queries: Family<OutcomeLabel, Counter>,
    running: Gauge,
}

impl Sql {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let sql = Sql::default();
        for outcome in QueryOutcome::ALL {
            drop(sql.queries.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }));
        }
        registry.register("sql_queries", "SQL queries that ended, by outcome", sql.queries.clone());
        registry.register("sql_queries_running", "SQL queries that are running", sql.running.clone());
        sql
    }

    /// Counts a query that runs; [`Sql::ended`] follows.
    pub fn started(&self) {
        self.running.inc();
    }

    /// Counts a query that has ended.
    pub fn ended(&self, outcome: QueryOutcome) {
        self.running.dec();
        self.queries.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }
}

/// HTTP: `http_requests{path,code}`.
#[derive(Clone, Debug, Default)]
pub struct Http {
    requests: Family<RequestLabel, Counter>,
}

impl Http {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let http = Http::default();
        registry.register("http_requests", "HTTP requests answered, by path and status code", http.requests.clone());
        http
    }

    /// Counts a request. `path` is one of the routes, never what a client typed.
    pub fn answered(&self, path: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabel { path, code }).inc();
    }
}

/// Reloads: `config_last_reload_successful`, `config_last_reload_success_timestamp_seconds`, as Prometheus names its own.
#[derive(Clone, Debug, Default)]
pub struct Reloads {
    successful: Gauge,
    at: Gauge<f64, AtomicU64>,
}

impl Reloads {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let reloads = Reloads::default();
        let help = "Whether the last reload of the configuration was taken up";
        registry.register("config_last_reload_successful", help, reloads.successful.clone());
        let help = "When the configuration was last taken up, seconds since the epoch";
        let name = "config_last_reload_success_timestamp";
        registry.register_with_unit(name, help, Unit::Seconds, reloads.at.clone());
        reloads
    }

    /// Notes that a configuration was taken up, at a start or by a reload, so many seconds after the epoch.
    pub fn taken_up(&self, at_secs: f64) {
        self.successful.set(1);
        self.at.set(at_secs);
    }

    pub fn refused(&self) {
        self.successful.set(0);
    }
}

/// The planner: `decisions{target,outcome}`.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    made: Family<DecisionLabel, Counter>,
}

impl Decisions {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let decisions = Decisions::default();
        let help = "Scaling decisions made, by target and whether the planner decided or why it abstained";
        registry.register("decisions", help, decisions.made.clone());
        decisions
    }

    /// Counts a decision; `outcome` is `decided` or the name of the abstention.
    pub fn made(&self, target: &str, outcome: &'static str) {
        self.made.get_or_create(&DecisionLabel { target: target.to_owned(), outcome }).inc();
    }
}

fn gauge_value(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
