//! The default of every key that has one. Values only.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use super::property::Properties;
use super::raw::*;
use super::unit::{Size, Span};

impl Default for Service {
    fn default() -> Self {
        Service { instance: "bellwether-0".to_owned() }
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Kafka {
            brokers: "localhost:9092".to_owned(),
            group_id: "bellwether".to_owned(),
            partials_topic: None,
            transactional_id: None,
            client: Properties::default(),
            deleted_unread: DeletedUnread::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            name_bytes_max: 512,
            labels_max: 64,
            label_name_bytes_max: 256,
            label_value_bytes_max: 4_096,
            payload_bytes_max: Size::from_mib(4),
            depth_max: 64,
            points_per_record_max: 100_000,
            series_max: 1_000_000,
            age_max: Span::from_secs(400 * 86_400),
            ahead_max: Span::from_secs(600),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Store {
            url: "./data".to_owned(),
            commit_interval: Span::from_secs(2),
            head_bytes_max: Size::from_mib(512),
            durable: true,
            retention: None,
            retention_by_table: BTreeMap::new(),
            retention_by_metric: BTreeMap::new(),
            upkeep_interval: Span::from_secs(30),
            vacuum_after: Span::from_secs(6 * 3600),
            options: Properties::default(),
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Stream {
            views: String::new(),
            lateness: Span::from_secs(10),
            state_max: Size::from_mib(512),
            idle_timeout: Span::from_secs(30),
            evaluation_interval: Span::from_secs(10),
        }
    }
}

impl Default for Insight {
    fn default() -> Self {
        Insight { tracks_max: 10_000, anomaly: Vec::new(), outlier: Vec::new(), forecast: Vec::new() }
    }
}

impl Outlier {
    pub(super) fn default_windows() -> usize {
        5
    }

    pub(super) fn default_windows_min() -> usize {
        3
    }
}

impl Forecast {
    pub(super) fn default_horizon() -> Span {
        Span::from_secs(600)
    }

    pub(super) fn default_level() -> f64 {
        0.95
    }
}

impl Default for Topics {
    fn default() -> Self {
        Topics {
            alerts: "bellwether.alerts".to_owned(),
            decisions: "bellwether.decisions".to_owned(),
            forecasts: "bellwether.forecasts".to_owned(),
            anomalies: "bellwether.anomalies".to_owned(),
            partitions: 1,
            replication: 1,
            create: true,
            flush_interval: Span::from_millis(20),
        }
    }
}

impl Scaling {
    pub(super) fn default_utilization() -> f64 {
        0.8
    }

    pub(super) fn default_replicas_min() -> u32 {
        1
    }

    pub(super) fn default_startup() -> Span {
        Span::from_secs(60)
    }

    pub(super) fn default_cooldown() -> Span {
        Span::from_secs(300)
    }

    pub(super) fn default_stale_after() -> Span {
        Span::from_secs(180)
    }

    pub(super) fn default_history_min() -> usize {
        3
    }
}

impl Default for Serve {
    fn default() -> Self {
        Serve {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
            postgres: None,
            users: None,
            tls_certificate: None,
            tls_key: None,
        }
    }
}

impl Default for Query {
    fn default() -> Self {
        Query {
            memory_max: Size::from_mib(1_024),
            rows_max: 1_000_000,
            timeout: Span::from_secs(30),
            concurrency_max: 4,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: LogLevel::Info, format: LogFormat::Text }
    }
}
