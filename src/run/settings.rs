//! From what was typed to what each room takes: checked once, at start.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::core::Input;
use super::effects::Topics;
use super::retention::Retention;
use super::{shipped, upkeep};
use crate::config::{Config, Loaded, raw};
use crate::decide::planner::ScalingTarget;
use crate::decide::rule::Rule;
use crate::ingest::{Format, Limits};
use crate::kafka::admin::Topic;
use crate::model::time::EventTime;
use crate::stream::definition::{Defaults, Definition, Definitions, Dimension};
use crate::{insight, kafka, query, serve, store};

/// Everything a running service needs to know.
#[derive(Clone)]
pub struct Settings {
    pub kafka: kafka::settings::Settings,
    /// The topic through which several instances share the work; none where there is one instance.
    pub partials_topic: Option<String>,
    pub inputs: Vec<Input>,
    /// Whether records that were deleted before they were read are passed over.
    pub skip_deleted: bool,
    pub limits: Limits,
    pub series_max: usize,
    pub age_max: Duration,
    pub ahead_max: Duration,
    pub store: store::Settings,
    pub upkeep: upkeep::Settings,
    pub views: Vec<Definition>,
    /// What views inherit where they say nothing.
    pub view_defaults: Defaults,
    pub dimensions: Vec<Dimension>,
    pub idle_timeout: Duration,
    pub evaluation_interval: Duration,
    pub insight: insight::settings::Settings,
    pub rules: Vec<Rule>,
    pub targets: Vec<ScalingTarget>,
    pub topics: Topics,
    /// Topics to be made where they are missing.
    pub topics_wanted: Vec<Topic>,
    pub flush_interval: Duration,
    pub serve: serve::Settings,
    /// The file of those who may ask; none where everyone may.
    pub users: Option<PathBuf>,
    pub query: query::Settings,
    /// As it was read, to tell what a reload changes.
    pub config: Config,
}

impl Settings {
    pub fn of(loaded: &Loaded) -> Result<Settings> {
        let config = &loaded.config;
        let defaults = Defaults {
            lateness: config.stream.lateness.get(),
            state_bytes_max: config.stream.state_max.bytes() as usize,
        };
        let Definitions { views, dimensions } = shipped::views(&config.stream.views, defaults)?;
        let inputs = inputs(config);
        let topics = Topics {
            alerts: config.topics.alerts.clone(),
            decisions: config.topics.decisions.clone(),
            forecasts: config.topics.forecasts.clone(),
            anomalies: config.topics.anomalies.clone(),
        };
        let targets = targets(config)?;
        check_columns(config, &views)?;
        check_corrections(config, &views)?;
        Ok(Settings {
            kafka: kafka(config),
            partials_topic: config.kafka.partials_topic.clone(),
            skip_deleted: config.kafka.deleted_unread == raw::DeletedUnread::Skip,
            limits: limits(config),
            series_max: config.limits.series_max,
            age_max: config.limits.age_max.get(),
            ahead_max: config.limits.ahead_max.get(),
            store: store(config, None),
            upkeep: upkeep::Settings {
                interval: config.store.upkeep_interval.get(),
                retention: Retention::of(&config.store),
                vacuum_after: config.store.vacuum_after.get(),
            },
            idle_timeout: config.stream.idle_timeout.get(),
            evaluation_interval: config.stream.evaluation_interval.get(),
            insight: insight(config)?,
            rules: shipped::rules(&config.alerts.rules)?,
            targets,
            topics_wanted: topics_wanted(config, &inputs, &topics, &views),
            topics,
            flush_interval: config.topics.flush_interval.get(),
            serve: serve(config),
            users: config.serve.users.as_ref().map(PathBuf::from),
            query: query(config),
            inputs,
            views,
            view_defaults: defaults,
            dimensions,
            config: config.clone(),
        })
    }

    /// Returns the slide of each view.
    pub fn slides(&self) -> BTreeMap<String, Duration> {
        self.views.iter().map(|view| (view.name.to_string(), view.window.slide())).collect()
    }

    /// Returns the event times accepted of records that arrive now.
    pub fn bounds(&self, now: EventTime) -> crate::ingest::Bounds {
        crate::ingest::Bounds { oldest: now - self.age_max, newest: now + self.ahead_max }
    }
}

/// How variables begin in which the tools of the clouds look for what `store.options` may say, by the same names.
const CLOUDS: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// Returns where the store is and how it behaves. `data`: another place than the configuration says.
pub fn store(config: &Config, data: Option<&str>) -> store::Settings {
    let url = data.unwrap_or(&config.store.url).to_owned();
    let said = config.store.options.clone().into_map();
    // One option has several names.
    let plain = |name: &str| {
        let name = name.to_ascii_lowercase();
        let inner = CLOUDS.iter().find_map(|cloud| name.strip_prefix(&cloud.to_ascii_lowercase())).unwrap_or(&name);
        if inner == "endpoint_url" { "endpoint".to_owned() } else { inner.to_owned() }
    };
    let is_said = |name: &str| said.keys().any(|known| plain(known) == plain(name));
    let of_cloud = |name: &str| url.contains("://") && CLOUDS.iter().any(|cloud| name.starts_with(cloud));
    let environment = std::env::vars().filter(|(name, _)| of_cloud(name) && !is_said(name));
    let environment = environment.map(|(name, value)| (name.to_ascii_lowercase(), value));
    store::Settings {
        options: environment.chain(said.clone()).collect::<HashMap<_, _>>(),
        commit_interval: config.store.commit_interval.get(),
        head_bytes_max: config.store.head_bytes_max.bytes() as usize,
        durable: config.store.durable,
        shared: config.kafka.partials_topic.is_some(),
        url,
    }
}

/// Corrections follow the positions of one process.
fn check_corrections(config: &Config, views: &[Definition]) -> Result<()> {
    let corrected = views.iter().find(|view| view.correct_every.is_some());
    match corrected.filter(|_| config.kafka.partials_topic.is_some()) {
        None => Ok(()),
        Some(view) => anyhow::bail!(
            "{}: instances that share their work do not correct views yet (hint: leave out correct_every, or \
             kafka.partials_topic)",
            view.file
        ),
    }
}

/// Returns the limits of queries.
pub fn query(config: &Config) -> query::Settings {
    query::Settings {
        memory_bytes_max: config.query.memory_max.bytes() as usize,
        rows_max: config.query.rows_max,
        timeout: config.query.timeout.get(),
        concurrency_max: config.query.concurrency_max,
        ..query::Settings::default()
    }
}

/// Returns where to listen, and what connections are encrypted with.
pub fn serve(config: &Config) -> serve::Settings {
    let serve = &config.serve;
    let tls = serve.tls_certificate.as_ref().zip(serve.tls_key.as_ref());
    serve::Settings {
        listen: serve.listen,
        postgres: serve.postgres,
        tls: tls.map(|(certificate, key)| serve::tls::Files { certificate: certificate.into(), key: key.into() }),
    }
}

/// Returns how to reach Kafka.
pub fn kafka(config: &Config) -> kafka::settings::Settings {
    kafka::settings::Settings {
        brokers: config.kafka.brokers.clone(),
        group_id: config.kafka.group_id.clone(),
        transactional_id: config.transactional_id(),
        topics: config.inputs.iter().map(|input| input.topic.clone()).collect(),
        client: config.kafka.client.clone().into_map(),
        ..kafka::settings::Settings::default()
    }
}

pub fn limits(config: &Config) -> Limits {
    let limits = &config.limits;
    Limits {
        name_bytes_max: limits.name_bytes_max,
        labels_max: limits.labels_max,
        label_name_bytes_max: limits.label_name_bytes_max,
        label_value_bytes_max: limits.label_value_bytes_max,
        payload_bytes_max: limits.payload_bytes_max.bytes() as usize,
        depth_max: limits.depth_max,
        points_per_record_max: limits.points_per_record_max,
    }
}

fn inputs(config: &Config) -> Vec<Input> {
    let one = |input: &raw::Input| {
        let format = match input.format {
            raw::Format::JsonMetrics => Format::JsonMetrics,
            raw::Format::JsonEvents => Format::JsonEvents,
            raw::Format::CloudEvents => Format::CloudEvents,
            raw::Format::OtlpMetrics => Format::OtlpMetrics,
            raw::Format::InfluxLine => Format::InfluxLine,
        };
        Input { topic: input.topic.clone(), format, dead_letter_topic: input.dead_letter_topic() }
    };
    config.inputs.iter().map(one).collect()
}

fn insight(config: &Config) -> Result<insight::settings::Settings> {
    // The two speak the same keys; going through their common text form keeps them from drifting apart unseen.
    let typed = serde_json::json!({
        "anomalies": config.insight.anomaly,
        "outliers": config.insight.outlier,
        "forecasts": config.insight.forecast,
        "tracks_max": config.insight.tracks_max,
    });
    serde_json::from_value(without_nulls(typed)).context("the section insight does not fit")
}

fn targets(config: &Config) -> Result<Vec<ScalingTarget>> {
    let one = |scaling: &raw::Scaling| {
        let target: ScalingTarget = serde_json::from_value(without_nulls(serde_json::to_value(scaling)?))
            .with_context(|| format!("scaling target {} does not fit", scaling.target))?;
        target.check()?;
        Ok(target)
    };
    config.scaling.iter().map(one).collect()
}

fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// Every view that insight or scaling names must be there.
fn check_columns(config: &Config, views: &[Definition]) -> Result<()> {
    let known: Vec<&str> = views.iter().map(|view| &*view.name).collect();
    let insight = &config.insight;
    let named = (insight.anomaly.iter().map(|a| ("insight.anomaly", &a.view)))
        .chain(insight.outlier.iter().map(|o| ("insight.outlier", &o.view)))
        .chain(insight.forecast.iter().map(|f| ("insight.forecast", &f.view)))
        .chain(config.scaling.iter().map(|s| ("scaling", &s.view)));
    for (section, view) in named {
        anyhow::ensure!(
            known.contains(&view.as_str()),
            "{section} names the view {view:?}, which is not defined (hint: {})",
            known.join(", ")
        );
    }
    Ok(())
}

/// Streams of changes keep their history; what is a current state is compacted by its key, so that a consumer who comes
/// late still finds the last word on every key.
fn topics_wanted(config: &Config, inputs: &[Input], topics: &Topics, views: &[Definition]) -> Vec<Topic> {
    if !config.topics.create {
        return Vec::new();
    }
    let policy = |policy: &str| BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
    let wanted = |name: &str, cleanup: &str| Topic {
        name: name.to_owned(),
        partitions: config.topics.partitions,
        replication: Some(config.topics.replication),
        config: policy(cleanup),
    };
    let history = [&topics.alerts, &topics.forecasts, &topics.anomalies].map(|name| wanted(name, "delete"));
    let dead_letters = inputs.iter().map(|input| wanted(&input.dead_letter_topic, "delete"));
    let views =
        views.iter().flat_map(|view| view.topic.iter().chain(&view.late_topic)).map(|name| wanted(name, "delete"));
    // One partition, as one instance closes the windows. Never deleted by age: a window that waits for its last row may
    // wait for long; who closes windows deletes what no window needs any more. A state may be large, as of a set.
    let partials = config.kafka.partials_topic.iter().map(|name| {
        let mut topic = Topic { partitions: 1, ..wanted(name, "delete") };
        topic.config.insert("retention.ms".to_owned(), "-1".to_owned());
        topic.config.insert("max.message.bytes".to_owned(), kafka::settings::MESSAGE_BYTES_MAX.to_string());
        topic
    });
    history
        .into_iter()
        .chain([wanted(&topics.decisions, "compact,delete")])
        .chain(dead_letters)
        .chain(views)
        .chain(partials)
        .collect()
}
