//! What insight finds in the rows of a view: anomalies within a series, outliers between series, forecasts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id;
use super::time::EventTime;

/// The series of one column of one view: which rows of a view belong together over time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Track {
    pub view: String,
    pub column: String,
    /// The view's key columns and their values.
    pub key: BTreeMap<String, String>,
}

impl Track {
    /// Returns the track as `view.column{a="x",b="y"}`, the form used in ids, topics' keys and messages.
    pub fn label(&self) -> String {
        let key: Vec<String> = self.key.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        format!("{}.{}{{{}}}", self.view, self.column, key.join(","))
    }
}

/// How a finding came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// One series against its own past.
    Residual,
    /// One member against its peers.
    Dbscan,
}

/// One row of `anomalies`, and one record on the anomalies topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Anomaly {
    pub id: String,
    /// End of the window in which it was found.
    pub at: EventTime,
    #[serde(flatten)]
    pub track: Track,
    pub method: Method,
    pub value: f64,
    /// What was expected instead: the forecast of the series, or the median of the peers.
    pub expected: f64,
    /// How surprising, in [0, 1): one minus the tail probability, after inhibition.
    pub score: f64,
}

impl Anomaly {
    pub fn new(at: EventTime, track: Track, method: Method, value: f64, expected: f64, score: f64) -> Self {
        let id = id::of_parts(["anomaly", &track.label(), &format!("{method:?}"), &at.as_micros().to_string()]);
        Anomaly { id, at, track, method, value, expected, score }
    }
}

/// One row of `forecasts`: what was expected, at `issued_at`, of the moment `target_time`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    pub id: String,
    pub issued_at: EventTime,
    pub target_time: EventTime,
    #[serde(flatten)]
    pub track: Track,
    pub yhat: f64,
    pub yhat_lower: f64,
    pub yhat_upper: f64,
    /// Nominal coverage of the interval, in (0, 1).
    pub level: f64,
    pub model: String,
}

impl Forecast {
    /// Returns the id of the forecast of a track for a moment, issued at a moment, by a model.
    pub fn id_of(track: &Track, issued_at: EventTime, target_time: EventTime, model: &str) -> String {
        let (issued, target) = (issued_at.as_micros().to_string(), target_time.as_micros().to_string());
        id::of_parts(["forecast", &track.label(), &issued, &target, model])
    }
}
