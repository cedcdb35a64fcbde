//! What can be typed: one struct per section of `bellwether.toml`, with every key, its default and its meaning.
//!
//! The doc comments of the fields are what the JSON Schema, the reference file and `docs/configuration.md` say. Holds
//! no rule that spans keys (see `check`), and nothing that a room makes of a value.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::property::Properties;
use super::unit::{Size, Span};

/// Settings of Bellwether. Every key has a default except those that only a user can know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub service: Service,
    pub kafka: Kafka,
    pub inputs: Vec<Input>,
    pub limits: Limits,
    pub store: Store,
    pub stream: Stream,
    pub insight: Insight,
    pub alerts: Alerts,
    pub topics: Topics,
    pub scaling: Vec<Scaling>,
    pub serve: Serve,
    pub query: Query,
    pub log: Log,
}

/// Who this process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// Name of this instance: unique in its consumer group and the same after a restart.
    pub instance: String,
}

/// The Kafka cluster and the consumer group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Brokers to start from, `host:port`, separated by commas.
    pub brokers: String,
    /// Consumer group.
    pub group_id: String,
    /// Topic through which the instances of the group share their work: the same one for all, and each with a
    /// `service.instance` of its own. Without it the group has one instance. Where it is missing it is made with one
    /// partition and no retention: what no window needs any more is deleted by the instances.
    pub partials_topic: Option<String>,
    /// Id of the transactional producer, unique to this instance; `<group_id>-<instance>` where not given.
    pub transactional_id: Option<String>,
    /// librdkafka properties for every client, such as `security.protocol` and `sasl.*`; each value is text,
    /// `{ env = "NAME" }` or `{ file = "/path" }`, secrets never plain text.
    #[schemars(extend("examples" = [
        { "security.protocol": "SASL_SSL", "sasl.password": { "env": "KAFKA_PASSWORD" } },
    ]))]
    pub client: Properties,
    /// What to do where the broker deleted records before they were read: `stop`, or `skip` them, say how many, and go
    /// on with what is left.
    pub deleted_unread: DeletedUnread,
}

/// What follows where records were deleted unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeletedUnread {
    /// Nothing more is read until somebody decides.
    #[default]
    Stop,
    /// They are counted and passed over.
    Skip,
}

/// A topic to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Topic to read.
    pub topic: String,
    /// Format of its records.
    pub format: Format,
    /// Table that its records go to; the one that the format fills where not given.
    #[serde(default)]
    pub table: Option<Table>,
    /// Topic for records that cannot be decoded; `<topic>.dlq` where not given.
    #[serde(default)]
    pub dead_letter_topic: Option<String>,
}

/// The formats of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Bellwether's own JSON for metrics.
    JsonMetrics,
    /// Bellwether's own JSON for events.
    JsonEvents,
    /// CloudEvents, binary or structured, CDEvents among them.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// OTLP metrics, protobuf or JSON.
    OtlpMetrics,
    /// Influx line protocol.
    InfluxLine,
}

/// The tables that inputs fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Values of metrics.
    Samples,
    /// Things that happened.
    Events,
}

/// How large a record may be, and how far off its time; a record beyond goes to the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most bytes in the name of a metric.
    #[schemars(range(min = 1, max = 65_536))]
    pub name_bytes_max: usize,
    /// Most labels of a series.
    #[schemars(range(min = 1, max = 4_096))]
    pub labels_max: usize,
    /// Most bytes in the name of a label.
    #[schemars(range(min = 1, max = 65_536))]
    pub label_name_bytes_max: usize,
    /// Most bytes in the value of a label.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub label_value_bytes_max: usize,
    /// Most bytes in a record.
    pub payload_bytes_max: Size,
    /// Deepest nesting in a record.
    #[schemars(range(min = 1, max = 512))]
    pub depth_max: usize,
    /// Most values in one record.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub points_per_record_max: usize,
    /// Most series at all.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub series_max: usize,
    /// How old a record may be when it arrives.
    pub age_max: Span,
    /// How far in the future a record's time may be.
    pub ahead_max: Span,
}

/// Where everything is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Folder, or URL of an object store such as `s3://bucket/path`.
    pub url: String,
    /// How often rows and offsets are committed.
    pub commit_interval: Span,
    /// Memory for rows that are not yet committed; reading from Kafka pauses when it is full.
    pub head_bytes_max: Size,
    /// Whether a commit to a folder waits until it is on the disk, so that a power cut takes back none that was made.
    /// That is two syncs a file: measured, about 25 ms for a commit of six files to a busy virtual disk.
    pub durable: bool,
    /// How long samples, events, refused and late records are kept, by the newest of them; for good where it is not set.
    pub retention: Option<Span>,
    /// The same of one table, where it differs: of samples, events, rejected, late, alerts, decisions, anomalies or forecasts.
    /// A view says so in its own file.
    #[schemars(extend("examples" = [{ "alerts": "365d", "rejected": "7d" }]))]
    pub retention_by_table: BTreeMap<String, Span>,
    /// How long samples of some metrics are kept, by patterns of their names in which `*` stands for any text. Where several
    /// fit, the longest holds; where none does, what holds for all samples.
    #[schemars(extend("examples" = [{ "debug_*": "1d", "slo_*": "730d" }]))]
    pub retention_by_metric: BTreeMap<String, Span>,
    /// How often it is looked whether small files should be merged, or rows are past their retention.
    pub upkeep_interval: Span,
    /// How long a file stays after its rows were merged into another or left, for readers that hold on to it.
    pub vacuum_after: Span,
    /// Options of the object store, such as `aws_region`; each value is text, `{ env = "NAME" }` or
    /// `{ file = "/path" }`, secrets never plain text.
    #[schemars(extend("examples" = [
        { "aws_region": "eu-central-1", "aws_secret_access_key": { "file": "/run/secrets/s3" } },
    ]))]
    pub options: Properties,
}

/// Continuous queries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stream {
    /// Folder of the views; empty for the shipped ones.
    pub views: String,
    /// How long a window waits for late rows, where a view does not say.
    pub lateness: Span,
    /// Bytes of open windows beyond which a view takes in no new group, where it does not say.
    pub state_max: Size,
    /// How long a partition may be silent before windows no longer wait for it.
    pub idle_timeout: Span,
    /// How often alert rules and scaling targets are evaluated, in event time.
    pub evaluation_interval: Span,
}

/// What is looked for in the views' rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Insight {
    /// Most series of view rows that detectors and forecasters follow, all together.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub tracks_max: usize,
    pub anomaly: Vec<Anomaly>,
    pub outlier: Vec<Outlier>,
    pub forecast: Vec<Forecast>,
}

/// A column to watch for values that do not follow from its own past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Anomaly {
    /// View to watch.
    pub view: String,
    /// Column of its values.
    pub column: String,
    /// Columns that tell its series apart.
    #[serde(default)]
    pub by: Vec<String>,
}

/// A column to watch for members of a group that differ from their peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outlier {
    /// View to watch.
    pub view: String,
    /// Column of its values.
    pub column: String,
    /// Columns that tell groups apart; none for one group of all.
    #[serde(default)]
    pub group: Vec<String>,
    /// Column that tells the members of a group apart.
    pub member: String,
    /// How many of the last windows count.
    #[serde(default = "Outlier::default_windows")]
    #[schemars(range(min = 1, max = 1_000))]
    pub windows: usize,
    /// In how many of them a member must differ to be an outlier.
    #[serde(default = "Outlier::default_windows_min")]
    #[schemars(range(min = 1, max = 1_000))]
    pub windows_min: usize,
}

/// A column to forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Forecast {
    /// View to forecast.
    pub view: String,
    /// Column of its values.
    pub column: String,
    /// Columns that tell its series apart.
    #[serde(default)]
    pub by: Vec<String>,
    /// Length of the season, such as `"1d"`; none where not given.
    #[serde(default)]
    pub season: Option<Span>,
    /// How far ahead to look.
    #[serde(default = "Forecast::default_horizon")]
    pub horizon: Span,
    /// Share of the values that the interval is to hold.
    #[serde(default = "Forecast::default_level")]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub level: f64,
}

/// Alert rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Alerts {
    /// Folder of the rules; empty for the shipped ones.
    pub rules: String,
}

/// The topics that Bellwether writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// Topic of alerts.
    pub alerts: String,
    /// Topic of scaling decisions.
    pub decisions: String,
    /// Topic of forecasts.
    pub forecasts: String,
    /// Topic of anomalies.
    pub anomalies: String,
    /// Partitions of a topic that is created.
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: i32,
    /// Replicas of a topic that is created.
    #[schemars(range(min = 1, max = 100))]
    pub replication: i32,
    /// Whether topics that do not exist are created.
    pub create: bool,
    /// Longest that an effect waits to be sent together with others.
    pub flush_interval: Span,
}

/// Something that can be scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// Name of what is scaled, as its orchestrator knows it.
    pub target: String,
    /// View that shows its load.
    pub view: String,
    /// Column of the load.
    pub column: String,
    /// Columns and values that pick the target's rows.
    #[serde(default)]
    pub key: BTreeMap<String, String>,
    /// Load that one replica can carry, in the column's unit.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub capacity_per_replica: f64,
    /// Share of that capacity to plan with.
    #[serde(default = "Scaling::default_utilization")]
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1))]
    pub utilization: f64,
    /// Fewest replicas.
    #[serde(default = "Scaling::default_replicas_min")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub replicas_min: u32,
    /// Most replicas.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub replicas_max: u32,
    /// Time from a decision until a new replica carries load.
    #[serde(default = "Scaling::default_startup")]
    pub startup: Span,
    /// Shortest time between a decision and a later one to scale down.
    #[serde(default = "Scaling::default_cooldown")]
    pub cooldown: Span,
    /// Cost of one replica for an hour, in any currency; 0 where it does not matter.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub cost_per_replica_hour: f64,
    /// Age at which the load is too old to decide on.
    #[serde(default = "Scaling::default_stale_after")]
    pub stale_after: Span,
    /// Fewest rows of load to decide on.
    #[serde(default = "Scaling::default_history_min")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub history_min: usize,
}

/// What others ask: HTTP with Flight SQL, and Postgres' protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// Address and port of HTTP and Flight SQL; port 0 takes any that is free. Another address than the loopback's lets
    /// other machines ask: set `users` then.
    #[schemars(with = "String", extend("format" = SOCKET_FORMAT))]
    pub listen: SocketAddr,
    /// Address and port for clients of Postgres, such as `127.0.0.1:5433`; none where not given.
    #[schemars(with = "Option<String>", extend("format" = SOCKET_FORMAT))]
    pub postgres: Option<SocketAddr>,
    /// File of those who may ask, with their passwords' and tokens' digests and what they may read, as
    /// `bellwether user` writes it. It is read again when it changes. Without it everyone may ask everything.
    pub users: Option<String>,
    /// File of the certificate, PEM, and of those that signed it; connections are encrypted with TLS then. It is read
    /// again when it changes, as is the key.
    pub tls_certificate: Option<String>,
    /// File of the certificate's key, PEM.
    pub tls_key: Option<String>,
}

/// What one SQL query may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Memory for all running queries together.
    pub memory_max: Size,
    /// Most rows in an answer.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub rows_max: usize,
    /// Longest a query may run.
    pub timeout: Span,
    /// Most queries at once.
    #[schemars(range(min = 1, max = 1_024))]
    pub concurrency_max: usize,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Least severe messages to write; the variable `BELLWETHER_LOG` takes finer directives.
    pub level: LogLevel,
    /// How messages are written.
    pub format: LogFormat,
}

/// The levels of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The formats of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The `format` of an address and port in the JSON Schema.
pub(super) const SOCKET_FORMAT: &str = "socket-address";

impl Config {
    /// Returns the transactional id: the one given, or `<group_id>-<instance>`.
    pub fn transactional_id(&self) -> String {
        let derived = || format!("{}-{}", self.kafka.group_id, self.service.instance);
        self.kafka.transactional_id.clone().unwrap_or_else(derived)
    }

    /// Returns the same settings with every value that follows from others written out.
    pub fn effective(&self) -> Config {
        let mut config = self.clone();
        config.kafka.transactional_id = Some(self.transactional_id());
        for input in &mut config.inputs {
            input.table = Some(input.table());
            input.dead_letter_topic = Some(input.dead_letter_topic());
        }
        config
    }
}

impl Input {
    /// Returns the table that the records go to: the one given, or the one that the format fills.
    pub fn table(&self) -> Table {
        self.table.unwrap_or(self.format.table())
    }

    /// Returns the topic for records that cannot be decoded: the one given, or `<topic>.dlq`.
    pub fn dead_letter_topic(&self) -> String {
        self.dead_letter_topic.clone().unwrap_or_else(|| format!("{}.dlq", self.topic))
    }
}

impl Format {
    /// Returns the one table that records of this format can fill.
    pub fn table(self) -> Table {
        match self {
            Format::JsonMetrics | Format::OtlpMetrics | Format::InfluxLine => Table::Samples,
            Format::JsonEvents | Format::CloudEvents => Table::Events,
        }
    }
}

impl LogLevel {
    /// Returns the level as tracing's directives spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}
