//! The newest value of everything the loop computes, as gauges whose names and labels are known only at run time.
//!
//! Each source (a view, a target …) replaces all of its values at once, so that what vanished from it vanishes from the
//! page. Bounded in number: what does not fit is left out and counted, never an error.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as CounterFamily;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Longest label value in bytes; the rest is cut off.
const LABEL_BYTES_MAX: usize = 256;

/// Longest name of a metric or label in bytes; the rest is cut off.
const NAME_BYTES_MAX: usize = 128;

/// Endings that belong to other types of metric; a gauge with one would be taken for a part of a counter or histogram.
const RESERVED_SUFFIXES: [&str; 6] = ["_total", "_count", "_sum", "_bucket", "_created", "_info"];

/// Names and values that tell one track of a view from another.
pub type Key = BTreeMap<String, String>;

/// One number of a view's row: the column, the key of the row, the value.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackValue {
    pub column: String,
    pub key: Key,
    pub value: f64,
}

/// What is forecast of one track for the moment `horizon` after the forecast was issued.
#[derive(Clone, Debug, PartialEq)]
pub struct ForecastValue {
    pub column: String,
    pub key: Key,
    pub horizon: Duration,
    pub yhat: f64,
    pub yhat_lower: f64,
    pub yhat_upper: f64,
}

/// One active instance of an alert rule.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertValue {
    pub rule: String,
    pub severity: &'static str,
    /// Firing, or else pending.
    pub firing: bool,
    pub labels: Key,
}

/// Holds the latest values. A clone shares them.
///
/// `view_<view>_<column>{<key>}`, `anomaly_score{view,column,<key>}`, `forecast_yhat{view,column,horizon,<key>}` with
/// `forecast_yhat_lower` and `forecast_yhat_upper`, `alert_firing{rule,severity,<labels>}` (1 firing, 0 pending),
/// `alerts_active{rule,severity,state}`, `desired_replicas{target}`, `decision_confidence{target}`.
///
/// Names are lower-cased and every character outside `[a-z0-9_]` becomes `_`. A name that ends like a counter or a
/// histogram gets `_value` after it. Where two columns end up with one name the first keeps it and the other is counted in
/// `latest_values_dropped{reason="name_taken"}`. A key label that clashes with one of ours gets `exported_` before it.
/// Values that are not finite are left out: an absent number is told from a wrong one.
#[derive(Clone, Debug)]
pub struct Latest {
    board: Arc<Board>,
    dropped: CounterFamily<DropLabel, Counter>,
}

impl Latest {
    pub(super) fn register(registry: &mut Registry, values_max: usize) -> Self {
        let board = Arc::new(Board { values_max, sources: RwLock::default() });
        let latest = Latest { board: Arc::clone(&board), dropped: CounterFamily::default() };
        for reason in [Dropped::LIMIT, Dropped::NAME_TAKEN] {
            drop(latest.dropped.get_or_create(&DropLabel { reason }));
        }
        let help = "Latest values left off this page, each time they were set";
        registry.register("latest_values_dropped", help, latest.dropped.clone());
        registry.register_collector(Box::new(board));
        latest
    }

    /// Drops every value: another instance has the newest ones now.
    pub fn clear(&self) {
        self.board.sources.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Replaces all values of a view by those of its newest window.
    pub fn replace_view(&self, view: &str, values: impl IntoIterator<Item = TrackValue>) {
        let points = values.into_iter().map(|value| Point {
            name: view_metric_name(view, &value.column),
            help: format!("Column {} of view {} at its newest window.", plain(&value.column), plain(view)),
            labels: Labels::new(&[], &value.key),
            value: value.value,
        });
        self.replace(Source::View(view.to_owned()), points);
    }

    /// Replaces all anomaly scores of a view, each in [0, 1).
    pub fn replace_anomaly_scores(&self, view: &str, scores: &[TrackValue]) {
        let points = scores.iter().map(|score| {
            let labels = Labels::new(&[("view", view), ("column", &score.column)], &score.key);
            Point::fixed("anomaly_score", "How surprising the newest value is, from 0 to 1.", labels, score.value)
        });
        self.replace(Source::Anomaly(view.to_owned()), points);
    }

    /// Replaces all forecasts of a view.
    pub fn replace_forecasts(&self, view: &str, forecasts: &[ForecastValue]) {
        let points = forecasts.iter().flat_map(|forecast| {
            let horizon = format!("{}s", forecast.horizon.as_secs());
            let ours = [("view", view), ("column", &*forecast.column), ("horizon", &*horizon)];
            let labels = Labels::new(&ours, &forecast.key);
            [
                ("forecast_yhat", "Value forecast at the horizon.", forecast.yhat),
                ("forecast_yhat_lower", "Lower bound of the forecast's interval.", forecast.yhat_lower),
                ("forecast_yhat_upper", "Upper bound of the forecast's interval.", forecast.yhat_upper),
            ]
            .map(|(name, help, value)| Point::fixed(name, help, labels.clone(), value))
        });
        self.replace(Source::Forecast(view.to_owned()), points);
    }

    /// Replaces all active alerts; one that is resolved is simply no longer given.
    pub fn replace_alerts(&self, alerts: &[AlertValue]) {
        let mut active: BTreeMap<(&str, &str, &str), u32> = BTreeMap::new();
        for alert in alerts {
            *active.entry((&alert.rule, alert.severity, alert.state())).or_default() += 1;
        }
        let counts = active.into_iter().map(|((rule, severity, state), count)| {
            let labels = Labels::new(&[("rule", rule), ("severity", severity), ("state", state)], &Key::new());
            Point::fixed("alerts_active", "Active alerts by rule, severity and state.", labels, f64::from(count))
        });
        let states = alerts.iter().map(|alert| {
            let labels = Labels::new(&[("rule", &alert.rule), ("severity", alert.severity)], &alert.labels);
            let firing = f64::from(u8::from(alert.firing));
            Point::fixed("alert_firing", "Whether an active alert fires (1) or is pending (0).", labels, firing)
        });
        self.replace(Source::Alerts, counts.chain(states));
    }

    /// Replaces what is asked for of a scaling target. `desired_replicas` is absent where the planner abstains.
    pub fn set_decision(&self, target: &str, desired_replicas: Option<u32>, confidence: f64) {
        let labels = Labels::new(&[("target", target)], &Key::new());
        let help = "Confidence of the newest decision, from 0 to 1.";
        let confidence = Point::fixed("decision_confidence", help, labels.clone(), confidence);
        let help = "Replicas that the newest decision asks for.";
        let desired = desired_replicas.map(|n| Point::fixed("desired_replicas", help, labels, f64::from(n)));
        self.replace(Source::Target(target.to_owned()), desired.into_iter().chain([confidence]));
    }

    fn replace(&self, source: Source, points: impl Iterator<Item = Point>) {
        let dropped = self.board.replace(source, points);
        for (reason, count) in [(Dropped::LIMIT, dropped.limit), (Dropped::NAME_TAKEN, dropped.name_taken)] {
            if count > 0 {
                self.dropped.get_or_create(&DropLabel { reason }).inc_by(count);
            }
        }
    }
}

impl AlertValue {
    fn state(&self) -> &'static str {
        if self.firing { "firing" } else { "pending" }
    }
}

/// Who set values and replaces them together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    View(String),
    Anomaly(String),
    Forecast(String),
    Alerts,
    Target(String),
}

/// One value on its way to the board.
struct Point {
    name: String,
    help: String,
    labels: Labels,
    value: f64,
}

impl Point {
    fn fixed(name: &str, help: &str, labels: Labels, value: f64) -> Self {
        Point { name: name.to_owned(), help: help.to_owned(), labels, value }
    }
}

/// The values of one metric name from one source.
#[derive(Debug, Default)]
struct Gauges {
    help: String,
    values: BTreeMap<Labels, f64>,
}

/// Metric name → its values.
type Gauged = BTreeMap<String, Gauges>;

/// All sources with their values.
#[derive(Debug)]
struct Board {
    values_max: usize,
    sources: RwLock<BTreeMap<Source, Gauged>>,
}

/// How many values were left out, by reason.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dropped {
    limit: u64,
    name_taken: u64,
}

impl Dropped {
    const LIMIT: &'static str = "limit";
    const NAME_TAKEN: &'static str = "name_taken";
}

impl Board {
    fn replace(&self, source: Source, points: impl Iterator<Item = Point>) -> Dropped {
        let mut sources = self.write();
        // First out, so that the old values neither count against the limit nor hold their names.
        sources.remove(&source);
        let held: usize = sources.values().flat_map(BTreeMap::values).map(|gauges| gauges.values.len()).sum();
        let mut room = self.values_max.saturating_sub(held);
        let mut fresh = Gauged::new();
        let mut dropped = Dropped::default();
        for point in points.filter(|point| point.value.is_finite()) {
            if is_taken(&sources, &source, &fresh, &point) {
                dropped.name_taken += 1;
                continue;
            }
            let known = fresh.get(&point.name).is_some_and(|gauges| gauges.values.contains_key(&point.labels));
            if room == 0 && !known {
                dropped.limit += 1;
                continue;
            }
            room -= usize::from(!known);
            let gauges = fresh.entry(point.name).or_insert_with(|| Gauges { help: point.help, ..Gauges::default() });
            gauges.values.insert(point.labels, point.value);
        }
        if !fresh.is_empty() {
            sources.insert(source, fresh);
        }
        dropped
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Source, Gauged>> {
        // A panic elsewhere cannot leave the map half-written: each change is one insert or one remove.
        self.sources.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether another view, or another column of this view, already stands under the name.
///
/// Names of views only: all other names are ours, and shared between sources by intention. The help names view and column
/// and so tells whether two names are the same by accident.
fn is_taken(sources: &BTreeMap<Source, Gauged>, source: &Source, fresh: &Gauged, point: &Point) -> bool {
    if !matches!(source, Source::View(_)) {
        return false;
    }
    let by_this = fresh.get(&point.name).is_some_and(|gauges| gauges.help != point.help);
    by_this
        || sources
            .iter()
            .take_while(|(other, _)| matches!(other, Source::View(_)))
            .any(|(_, gauged)| gauged.contains_key(&point.name))
}

impl Collector for Board {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        // A metric must stand in one piece on the page, and several sources may share its name.
        let mut page: BTreeMap<&str, Vec<&Gauges>> = BTreeMap::new();
        for (name, gauges) in sources.values().flatten() {
            page.entry(name).or_default().push(gauges);
        }
        for (name, parts) in page {
            let help = parts.first().map_or("", |gauges| &gauges.help);
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            // Cut label values may coincide across sources; a sample twice would make the page unreadable.
            let values: BTreeMap<&Labels, f64> =
                parts.into_iter().flat_map(|gauges| &gauges.values).map(|(labels, value)| (labels, *value)).collect();
            for (labels, value) in values {
                ConstGauge::new(value).encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

/// Labels with checked names, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Makes labels of ours, whose names are known to be good, and of a key, whose names may be anything.
    fn new(ours: &[(&str, &str)], key: &Key) -> Self {
        let mut labels: BTreeMap<String, String> =
            ours.iter().map(|(name, value)| ((*name).to_owned(), cut(value, LABEL_BYTES_MAX).to_owned())).collect();
        for (name, value) in key {
            let mut name = label_name(name);
            // Ends: every round makes the name longer, and there are finitely many to clash with.
            let place = loop {
                match labels.entry(name) {
                    Entry::Vacant(place) => break place,
                    Entry::Occupied(taken) => name = format!("exported_{}", taken.key()),
                }
            };
            place.insert(cut(value, LABEL_BYTES_MAX).to_owned());
        }
        Labels(labels)
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        self.0.iter().try_for_each(|(name, value)| (name.as_str(), value.as_str()).encode(encoder.encode_label()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabel {
    reason: &'static str,
}

fn view_metric_name(view: &str, column: &str) -> String {
    let name = format!("view_{}_{}", sanitized(view), sanitized(column));
    let name = cut(&name, NAME_BYTES_MAX);
    let suffix = if RESERVED_SUFFIXES.iter().any(|reserved| name.ends_with(reserved)) { "_value" } else { "" };
    format!("{name}{suffix}")
}

/// Returns a name that labels may have: not empty, no digit first, no `__` first, which is reserved.
fn label_name(name: &str) -> String {
    let name = sanitized(cut(name, NAME_BYTES_MAX));
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase()) || (name.starts_with('_') && name.len() > 1);
    if starts_well && !name.starts_with("__") { name } else { format!("label_{name}") }
}

/// Returns the text in lower case with `_` for everything outside `[a-z0-9_]`.
fn sanitized(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

/// Returns a name as it may stand in a help line, which knows no line breaks and escapes by backslash.
fn plain(name: &str) -> String {
    cut(name, NAME_BYTES_MAX).chars().map(|c| if c.is_control() || c == '\\' { '_' } else { c }).collect()
}

/// Returns the text up to `bytes_max`, never splitting a character.
fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

#[cfg(test)]
mod tests;
