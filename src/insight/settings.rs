//! What the configuration says of insight: which columns of which views are watched for what. Nothing is checked here
//! beyond its form; [`super::Insight::new`] does the rest.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All that is watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub anomalies: Vec<AnomalySettings>,
    pub outliers: Vec<OutlierSettings>,
    pub forecasts: Vec<ForecastSettings>,
    /// The most tracks (series of one column of one view) that each entry follows; further ones are refused and counted.
    pub tracks_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { anomalies: Vec::new(), outliers: Vec::new(), forecasts: Vec::new(), tracks_max: 10_000 }
    }
}

/// Watches every series of a column for anomalies against its own past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnomalySettings {
    pub view: String,
    /// A numeric column of the view.
    pub column: String,
    /// The key columns that tell its series apart.
    #[serde(default)]
    pub by: Vec<String>,
}

/// Watches the members of every group for those that stand apart from their peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutlierSettings {
    pub view: String,
    /// A numeric column of the view.
    pub column: String,
    /// The key columns that make a group, such as the service.
    #[serde(default)]
    pub group: Vec<String>,
    /// The key column that names a member, such as the replica.
    pub member: String,
    /// How many of the last windows count, at most 64.
    #[serde(default = "OutlierSettings::default_windows")]
    pub windows: usize,
    /// In how many of them a member must stand out.
    #[serde(default = "OutlierSettings::default_windows_min")]
    pub windows_min: usize,
}

impl OutlierSettings {
    fn default_windows() -> usize {
        5
    }

    fn default_windows_min() -> usize {
        3
    }
}

/// Forecasts every series of a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForecastSettings {
    pub view: String,
    /// A numeric column of the view.
    pub column: String,
    /// The key columns that tell its series apart.
    #[serde(default)]
    pub by: Vec<String>,
    /// Length of a season, such as "1day"; none where the series has no rhythm.
    #[serde(default, with = "duration_text_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub season: Option<Duration>,
    /// How far to look ahead, such as "30m".
    #[serde(with = "duration_text")]
    #[schemars(with = "String")]
    pub horizon: Duration,
    /// Nominal coverage of the intervals, above 0 and below 1.
    #[serde(default = "ForecastSettings::default_level")]
    pub level: f64,
}

impl ForecastSettings {
    fn default_level() -> f64 {
        0.9
    }
}

/// A duration as text, such as "1h 30m".
mod duration_text {
    use super::*;

    pub fn serialize<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            serde::de::Error::custom(format!("expected a duration such as \"1h\", got {text:?}: {error}"))
        })
    }
}

/// The same where there may be none.
mod duration_text_option {
    use super::*;

    pub fn serialize<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => duration_text::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        duration_text::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_durations_are_read_from_text() {
        let text = r#"{"forecasts": [{"view": "v", "column": "n", "season": "1day", "horizon": "30m"}],
                       "outliers": [{"view": "v", "column": "n", "member": "pod"}]}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        let forecast = &settings.forecasts[0];
        assert_eq!(forecast.season, Some(Duration::from_secs(86_400)));
        assert_eq!((forecast.horizon, forecast.level), (Duration::from_secs(1_800), 0.9));
        assert_eq!((settings.outliers[0].windows, settings.outliers[0].windows_min), (5, 3));
        let again: Settings = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
        assert_eq!(again, settings);
    }

    #[test]
    fn unknown_keys_and_odd_durations_are_refused() {
        let refused = |text: &str| serde_json::from_str::<Settings>(text).unwrap_err().to_string();
        assert!(refused(r#"{"anomaly": []}"#).contains("unknown field"));
        let text = r#"{"forecasts": [{"view": "v", "column": "n", "horizon": "soon"}]}"#;
        assert!(refused(text).contains("expected a duration such as"));
    }
}
