//! Checks what a schema cannot say: rules that span keys, names that must differ, times and sizes that must not be nil.
//!
//! Works on a whole [`Config`] and reports everything it finds. Does no I/O: whether a broker answers or a folder
//! exists is for those who use it.

use std::collections::HashMap;

use super::error::{Fault, Problem};
use super::key_path::KeyPath;
use super::nearest::nearest;
use super::origin::Origins;
use super::raw::{Anomaly, Config, Forecast, Input, Outlier, Scaling, Topics};
use super::unit::{Size, Span};

/// Longest name of a Kafka topic, in bytes.
const TOPIC_BYTES_MAX: usize = 249;
/// Longest name of an instance or of a consumer group, in bytes; both together are a transactional id.
const ID_BYTES_MAX: usize = 200;
/// The tables of which it can be said how long they are kept.
const KEPT_TABLES: [&str; 8] =
    ["samples", "events", "rejected", "late", "alerts", "decisions", "anomalies", "forecasts"];
/// Least memory that is of any use as a limit.
const MEMORY_MIN: Size = Size::from_mib(1);
/// Largest limit on a record: Kafka's own sizes end at 2 GiB.
const PAYLOAD_MAX: Size = Size::from_mib(1_024);

/// Returns everything that is wrong with a configuration of the right shape.
pub(super) fn check(config: &Config, origins: &Origins) -> Vec<Problem> {
    let mut check = Check { config, origins, problems: Vec::new() };
    check.lengths_of_time();
    check.sizes();
    check.kafka();
    check.store();
    check.topics();
    check.inputs();
    check.serve();
    check.insight();
    check.scaling();
    check.problems
}

struct Check<'a> {
    config: &'a Config,
    origins: &'a Origins,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn lengths_of_time(&mut self) {
        let Config { limits, store, stream, topics, query, .. } = self.config;
        for (keys, span) in [
            (["limits", "age_max"], limits.age_max),
            (["limits", "ahead_max"], limits.ahead_max),
            (["store", "commit_interval"], store.commit_interval),
            (["store", "upkeep_interval"], store.upkeep_interval),
            (["store", "vacuum_after"], store.vacuum_after),
            (["stream", "idle_timeout"], stream.idle_timeout),
            (["stream", "evaluation_interval"], stream.evaluation_interval),
            (["topics", "flush_interval"], topics.flush_interval),
            (["query", "timeout"], query.timeout),
        ] {
            self.positive(&KeyPath::of(keys), span);
        }
        self.retention();
    }

    fn retention(&mut self) {
        let store = &self.config.store;
        if let Some(keep) = store.retention {
            self.positive(&KeyPath::of(["store", "retention"]), keep);
        }
        for (pattern, keep) in &store.retention_by_metric {
            self.positive(&KeyPath::of(["store", "retention_by_metric"]).key(pattern), *keep);
        }
        for (table, keep) in &store.retention_by_table {
            let path = KeyPath::of(["store", "retention_by_table"]).key(table);
            self.positive(&path, *keep);
            if !KEPT_TABLES.contains(&table.as_str()) {
                let hint = match nearest(table, KEPT_TABLES) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "a view says so in its own file: WITH (retention = '90d')".to_owned(),
                };
                self.refuse_with(&path, format!("expected one of {}, came {table:?}", KEPT_TABLES.join(", ")), &hint);
            }
        }
    }

    fn sizes(&mut self) {
        let Config { limits, store, query, stream, .. } = self.config;
        let payload = limits.payload_bytes_max;
        if payload.bytes() == 0 || payload > PAYLOAD_MAX {
            let message = format!("expected 1B to {PAYLOAD_MAX}, came {payload}");
            self.refuse(&KeyPath::of(["limits", "payload_bytes_max"]), message);
        }
        for (keys, size) in [
            (["store", "head_bytes_max"], store.head_bytes_max),
            (["query", "memory_max"], query.memory_max),
            (["stream", "state_max"], stream.state_max),
        ] {
            if size < MEMORY_MIN {
                self.refuse(&KeyPath::of(keys), format!("expected at least {MEMORY_MIN}, came {size}"));
            }
        }
    }

    fn kafka(&mut self) {
        let Config { service, kafka, .. } = self.config;
        if let Some(broker) = kafka.brokers.split(',').find(|broker| !is_broker(broker.trim())) {
            let message = format!("expected host:port, or several with commas between, came {broker:?}");
            self.refuse(&KeyPath::of(["kafka", "brokers"]), message);
        }
        let ids = [
            (["service", "instance"], Some(&service.instance)),
            (["kafka", "group_id"], Some(&kafka.group_id)),
            (["kafka", "transactional_id"], kafka.transactional_id.as_ref()),
        ];
        for (keys, id) in ids {
            if let Some(id) = id.filter(|id| !is_name(id, ID_BYTES_MAX)) {
                let message = format!("expected 1 to {ID_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_', '-', came {id:?}");
                self.refuse(&KeyPath::of(keys), message);
            }
        }
        if let Some(topic) = &kafka.partials_topic {
            self.partials(&KeyPath::of(["kafka", "partials_topic"]), topic);
        }
    }

    /// Checks the topic through which instances share the work: nothing else may stand in it.
    fn partials(&mut self, path: &KeyPath, topic: &str) {
        self.topic(path, topic);
        let is_input = |input: &Input| input.topic == topic || input.dead_letter_topic() == topic;
        let is_written = written(&self.config.topics).into_iter().any(|(_, written)| written == topic);
        if is_written || self.config.inputs.iter().any(is_input) {
            self.refuse(path, format!("topic {topic:?} has another use already"));
        }
    }

    fn serve(&mut self) {
        let missing = match (&self.config.serve.tls_certificate, &self.config.serve.tls_key) {
            (Some(_), None) => "tls_key",
            (None, Some(_)) => "tls_certificate",
            _ => return,
        };
        self.refuse(&KeyPath::of(["serve", missing]), "TLS takes both, a certificate and its key");
    }

    fn store(&mut self) {
        let path = KeyPath::of(["store", "url"]);
        let url = self.config.store.url.as_str();
        if url.trim().is_empty() {
            return self.refuse(&path, "expected a folder or a URL, came nothing");
        }
        if !url.contains("://") {
            return;
        }
        // What came is not repeated: it may hold a password.
        match url::Url::parse(url) {
            Err(error) => self.refuse(&path, format!("expected a folder or a URL, came a broken URL ({error})")),
            Ok(url) if url.password().is_some() => {
                let hint = r#"put it in store.options as { env = "NAME" } or { file = "/path" }"#;
                self.refuse_with(&path, "expected a URL without a password in it, came one with", hint);
            }
            Ok(url) if url.query().is_some() => {
                let hint = "what it says belongs in store.options, signatures as secrets";
                self.refuse_with(&path, "expected a URL without a query, came one with", hint);
            }
            Ok(_) => {}
        }
    }

    fn inputs(&mut self) {
        let config = self.config;
        let list = KeyPath::of(["inputs"]);
        let topics = config.inputs.iter().enumerate();
        self.distinct("topic", topics.map(|(n, input)| (list.index(n).key("topic"), input.topic.clone())));
        for (n, input) in config.inputs.iter().enumerate() {
            let path = list.index(n);
            let is_topic = self.topic(&path.key("topic"), &input.topic);
            // What is wrong with the topic is wrong with the name made of it; once is enough.
            if is_topic || input.dead_letter_topic.is_some() {
                self.dead_letters(&path.key("dead_letter_topic"), &input.dead_letter_topic());
            }
            if let Some((key, _)) = written(&config.topics).into_iter().find(|(_, topic)| *topic == input.topic) {
                let message = format!("topic {:?} is what topics.{key} writes, and would come back", input.topic);
                self.refuse(&path.key("topic"), message);
            }
            let fills = input.format.table();
            if let Some(table) = input.table.filter(|table| *table != fills) {
                let message = format!("expected {}, which the format fills, came {}", word(&fills), word(&table));
                self.refuse_with(&path.key("table"), message, "leave it out");
            }
        }
    }

    /// Checks a topic for dead letters. Several inputs may share one.
    fn dead_letters(&mut self, path: &KeyPath, topic: &str) {
        self.topic(path, topic);
        if self.config.inputs.iter().any(|input| input.topic == topic) {
            self.refuse(path, format!("topic {topic:?} is an input, so its dead letters would come around again"));
        }
        if let Some((key, _)) = written(&self.config.topics).into_iter().find(|(_, written)| *written == topic) {
            self.refuse(
                path,
                format!("topic {topic:?} is what topics.{key} writes, which dead letters must not mix with"),
            );
        }
    }

    fn topics(&mut self) {
        let section = KeyPath::of(["topics"]);
        let written = written(&self.config.topics);
        self.distinct("topic", written.iter().map(|(key, topic)| (section.key(key), (*topic).to_owned())));
        for (key, topic) in written {
            self.topic(&section.key(key), topic);
        }
    }

    fn insight(&mut self) {
        let insight = &self.config.insight;
        let path = |list: &str, n: usize| KeyPath::of(["insight", list]).index(n);
        for (n, Anomaly { view, column, .. }) in insight.anomaly.iter().enumerate() {
            self.present(&path("anomaly", n), &[("view", view), ("column", column)]);
        }
        for (n, outlier) in insight.outlier.iter().enumerate() {
            self.outlier(&path("outlier", n), outlier);
        }
        for (n, Forecast { view, column, season, horizon, .. }) in insight.forecast.iter().enumerate() {
            let path = path("forecast", n);
            self.present(&path, &[("view", view), ("column", column)]);
            self.positive(&path.key("horizon"), *horizon);
            if let Some(season) = season {
                self.positive(&path.key("season"), *season);
            }
        }
        let name = |view: &str, column: &str, by: &[String]| format!("{view}.{column} by [{}]", by.join(", "));
        let anomalies = insight.anomaly.iter().map(|a| name(&a.view, &a.column, &a.by));
        let outliers = insight.outlier.iter().map(|o| name(&o.view, &o.column, &o.group) + " of " + &o.member);
        let forecasts = insight.forecast.iter().map(|f| name(&f.view, &f.column, &f.by));
        self.distinct("series", anomalies.enumerate().map(|(n, name)| (path("anomaly", n), name)));
        self.distinct("series", outliers.enumerate().map(|(n, name)| (path("outlier", n), name)));
        self.distinct("series", forecasts.enumerate().map(|(n, name)| (path("forecast", n), name)));
    }

    fn outlier(&mut self, path: &KeyPath, outlier: &Outlier) {
        let Outlier { view, column, group, member, windows, windows_min } = outlier;
        self.present(path, &[("view", view), ("column", column), ("member", member)]);
        if windows_min > windows {
            let message = format!("expected at most windows, which is {windows}, came {windows_min}");
            self.refuse(&path.key("windows_min"), message);
        }
        if group.contains(member) {
            let message = format!("column {member:?} is one of the group, which leaves one member each");
            self.refuse(&path.key("member"), message);
        }
    }

    fn scaling(&mut self) {
        let config = self.config;
        let list = KeyPath::of(["scaling"]);
        let targets = config.scaling.iter().enumerate();
        self.distinct("target", targets.map(|(n, s)| (list.index(n).key("target"), s.target.clone())));
        for (n, Scaling { target, view, column, replicas_min, replicas_max, stale_after, .. }) in
            config.scaling.iter().enumerate()
        {
            let path = list.index(n);
            self.present(&path, &[("target", target), ("view", view), ("column", column)]);
            self.positive(&path.key("stale_after"), *stale_after);
            if replicas_min > replicas_max {
                let message = format!("expected at most replicas_max, which is {replicas_max}, came {replicas_min}");
                self.refuse(&path.key("replicas_min"), message);
            }
        }
    }

    /// Refuses a name that was already given.
    fn distinct(&mut self, what: &str, named: impl Iterator<Item = (KeyPath, String)>) {
        let mut first: HashMap<String, KeyPath> = HashMap::new();
        for (path, name) in named {
            match first.get(&name) {
                Some(before) => self.refuse(&path, format!("{what} {name:?} is already given by {before}")),
                None => drop(first.insert(name, path)),
            }
        }
    }

    fn present(&mut self, path: &KeyPath, names: &[(&str, &str)]) {
        for (key, _) in names.iter().filter(|(_, name)| name.trim().is_empty()) {
            self.refuse(&path.key(key), "expected a name, came nothing");
        }
    }

    fn positive(&mut self, path: &KeyPath, span: Span) {
        if span.get().is_zero() {
            self.refuse(path, format!("expected more than zero, came {span}"));
        }
    }

    /// Tells whether a topic can have this name, and refuses it where not.
    fn topic(&mut self, path: &KeyPath, topic: &str) -> bool {
        let is_topic = is_name(topic, TOPIC_BYTES_MAX) && !matches!(topic, "." | "..");
        if !is_topic {
            let allowed = format!("1 to {TOPIC_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_', '-'");
            self.refuse(path, format!("expected the name of a topic, {allowed}, came {topic:?}"));
        }
        is_topic
    }

    fn refuse(&mut self, path: &KeyPath, message: impl Into<String>) {
        self.problems.push(self.origins.problem(path, Fault::value(path, message, None)));
    }

    fn refuse_with(&mut self, path: &KeyPath, message: impl Into<String>, hint: &str) {
        self.problems.push(self.origins.problem(path, Fault::value(path, message, Some(hint.to_owned()))));
    }
}

/// Returns the topics that are written, each with its key.
fn written(topics: &Topics) -> [(&str, &str); 4] {
    [
        ("alerts", &topics.alerts),
        ("decisions", &topics.decisions),
        ("forecasts", &topics.forecasts),
        ("anomalies", &topics.anomalies),
    ]
}

fn is_name(text: &str, bytes_max: usize) -> bool {
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(of_name)
}

/// Tells whether a text names a broker as librdkafka takes it: `[protocol://]host[:port]`, IPv6 hosts in brackets.
fn is_broker(text: &str) -> bool {
    let address = text.split_once("://").map_or(text, |(_, address)| address);
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (address, None),
    };
    let is_host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && !host.contains([':', '/', ' ']),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Returns a value of an enum as it is typed.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).map(|value| value.to_string()).unwrap_or_default()
}
