//! One entry of the settings with the memory of all its tracks: takes rows apart into tracks, and puts what detectors
//! and forecasters say into findings. Decides nothing by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::detect::{self, ResidualDetector};
use super::forecast::{self, Forecaster};
use super::outlier::{self, GroupOutlier, Persistence};
use super::settings::{AnomalySettings, ForecastSettings, OutlierSettings};
use super::{Counts, Error, Findings, Row};
use crate::model::finding::{Anomaly, Forecast, Method, Track};
use crate::model::time::{EventTime, micros};

/// The values of the key columns that tell tracks apart, in the order of the settings.
type Key = Vec<String>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnomalyWatch {
    pub settings: AnomalySettings,
    #[serde(with = "pairs")]
    detectors: BTreeMap<Key, ResidualDetector>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutlierWatch {
    pub settings: OutlierSettings,
    persistence: Persistence,
    #[serde(with = "pairs")]
    groups: BTreeMap<Key, GroupOutlier>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastWatch {
    pub settings: ForecastSettings,
    #[serde(with = "pairs")]
    forecasters: BTreeMap<Key, Forecaster>,
}

impl AnomalyWatch {
    pub fn new(settings: AnomalySettings) -> Self {
        AnomalyWatch { settings, detectors: BTreeMap::new() }
    }

    pub fn tracks(&self) -> usize {
        self.detectors.len()
    }

    pub fn observe(&mut self, at: EventTime, rows: &[Row], max: usize, counts: &mut Counts, findings: &mut Findings) {
        let AnomalySettings { view, column, by } = &self.settings;
        for row in rows {
            let Some((key, value)) = part(row, by, column, counts) else { continue };
            let Some(detector) = entry(&mut self.detectors, &key, max, counts, ResidualDetector::new) else { continue };
            let score = match detector.update(at, value) {
                Ok(score) => score,
                Err(detect::Abstention::Warming { .. }) => {
                    counts.abstain("anomaly_warming");
                    continue;
                }
                Err(detect::Abstention::Unusable { .. }) => {
                    counts.abstain("anomaly_unusable_value");
                    continue;
                }
                Err(detect::Abstention::OutOfOrder { .. }) => {
                    counts.abstain("anomaly_out_of_order");
                    continue;
                }
            };
            let track = track(view, column, by, &key);
            if score.detected {
                let method = Method::Residual;
                findings.anomalies.push(Anomaly::new(at, track.clone(), method, value, score.expected, score.score));
            }
            findings.scores.push((track, score.score));
        }
    }
}

impl OutlierWatch {
    pub fn try_new(settings: OutlierSettings) -> Result<Self, Error> {
        let bits = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        match Persistence::try_new(bits(settings.windows_min), bits(settings.windows)) {
            Some(persistence) => Ok(OutlierWatch { settings, persistence, groups: BTreeMap::new() }),
            None => Err(Error::Persistence {
                view: settings.view,
                column: settings.column,
                min: settings.windows_min,
                of: settings.windows,
                max: Persistence::WINDOWS_MAX,
            }),
        }
    }

    pub fn tracks(&self) -> usize {
        self.groups.len()
    }

    pub fn observe(&mut self, at: EventTime, rows: &[Row], max: usize, counts: &mut Counts, findings: &mut Findings) {
        let OutlierSettings { view, column, group: by, member, .. } = &self.settings;
        let mut windows: BTreeMap<Key, Vec<(&str, f64)>> = BTreeMap::new();
        for row in rows {
            let Some((key, value)) = part(row, by, column, counts) else { continue };
            match row.key.get(member) {
                Some(name) => windows.entry(key).or_default().push((name, value)),
                None => counts.rows_without_column += 1,
            }
        }
        for (key, window) in windows {
            let new = || GroupOutlier::new(self.persistence);
            let Some(group) = entry(&mut self.groups, &key, max, counts, new) else { continue };
            let scores = match group.update(at, &window) {
                Ok(scores) => scores,
                Err(outlier::Abstention::TooFew { .. }) => {
                    counts.abstain("outlier_too_few_members");
                    continue;
                }
                Err(outlier::Abstention::TooMany { .. }) => {
                    counts.abstain("outlier_too_many_members");
                    continue;
                }
                Err(outlier::Abstention::OutOfOrder { .. }) => {
                    counts.abstain("outlier_out_of_order");
                    continue;
                }
            };
            for score in scores {
                let mut track = track(view, column, by, &key);
                track.key.insert(member.clone(), score.member);
                if score.detected {
                    let (value, method) = (score.value, Method::Dbscan);
                    findings.anomalies.push(Anomaly::new(at, track.clone(), method, value, score.median, score.score));
                }
                findings.scores.push((track, score.score));
            }
        }
    }
}

impl ForecastWatch {
    /// Points a model is fitted to where there is no season; with one, [`ForecastWatch::SEASONS`] of them if that is more.
    const POINTS: usize = 256;
    const SEASONS: usize = 4;
    /// A model is fitted anew after this share of its history, which bounds what fitting costs per point.
    const REFITS_PER_HISTORY: usize = 64;

    pub fn try_new(settings: ForecastSettings) -> Result<Self, Error> {
        let ForecastSettings { view, column, season, horizon, level, .. } = &settings;
        let zero = |what| Error::ZeroDuration { view: view.clone(), column: column.clone(), what };
        if !(0.0 < *level && *level < 1.0) {
            return Err(Error::Level { view: view.clone(), column: column.clone(), got: *level });
        }
        if horizon.is_zero() {
            return Err(zero("horizon"));
        }
        if season.is_some_and(|season| season.is_zero()) {
            return Err(zero("season"));
        }
        Ok(ForecastWatch { settings, forecasters: BTreeMap::new() })
    }

    pub fn tracks(&self) -> usize {
        self.forecasters.len()
    }

    pub fn observe(
        &mut self,
        at: EventTime,
        step: Duration,
        rows: &[Row],
        max: usize,
        counts: &mut Counts,
        findings: &mut Findings,
    ) {
        let Ok(settings) = forecast::Settings::try_new(self.request(step)) else {
            counts.abstain("forecast_step_does_not_fit");
            return;
        };
        let ForecastSettings { view, column, by, level, .. } = &self.settings;
        for row in rows {
            let Some((key, value)) = part(row, by, column, counts) else { continue };
            let new = || Forecaster::new(settings);
            let Some(forecaster) = entry(&mut self.forecasters, &key, max, counts, new) else { continue };
            if *forecaster.settings() != settings {
                *forecaster = Forecaster::new(settings);
            }
            match forecaster.observe(at, value).and_then(|()| forecaster.issue(at)) {
                Ok(points) => {
                    let track = track(view, column, by, &key);
                    let model = forecaster.model().unwrap_or("unknown");
                    findings.forecasts.extend(points.iter().map(|point| finding(&track, at, point, *level, model)));
                }
                Err(abstention) => counts.abstain(reason(&abstention)),
            }
        }
    }

    fn request(&self, step: Duration) -> forecast::Request {
        let step_micros = micros(step).max(1);
        let steps = |span: Duration| usize::try_from(micros(span) / step_micros).unwrap_or(usize::MAX);
        // A season shorter than two steps cannot be seen in the rows.
        let season = self.settings.season.map(steps).filter(|season| *season >= 2);
        let wanted = season.map_or(0, |season| season.saturating_mul(Self::SEASONS));
        let history_max = wanted.clamp(Self::POINTS, forecast::Settings::HISTORY_MAX);
        forecast::Request {
            step,
            season,
            horizon: steps(self.settings.horizon).max(1),
            level: self.settings.level,
            history_max,
            refit_every: (history_max / Self::REFITS_PER_HISTORY).min(forecast::Settings::HORIZON_MAX),
        }
    }
}

fn reason(abstention: &forecast::Abstention) -> &'static str {
    match abstention {
        forecast::Abstention::ShortHistory { .. } => "forecast_short_history",
        forecast::Abstention::Gap { .. } => "forecast_gap",
        forecast::Abstention::FitFailed { .. } => "forecast_fit_failed",
        forecast::Abstention::Unusable { .. } => "forecast_unusable_value",
        forecast::Abstention::OutOfOrder { .. } => "forecast_out_of_order",
    }
}

fn finding(track: &Track, issued_at: EventTime, point: &forecast::Point, level: f64, model: &str) -> Forecast {
    Forecast {
        id: Forecast::id_of(track, issued_at, point.target_time, model),
        issued_at,
        target_time: point.target_time,
        track: track.clone(),
        yhat: point.yhat,
        yhat_lower: point.yhat_lower,
        yhat_upper: point.yhat_upper,
        level,
        model: model.to_owned(),
    }
}

/// Takes the key and the value of an entry from a row; counts a row that lacks one of them.
fn part(row: &Row, by: &[String], column: &str, counts: &mut Counts) -> Option<(Key, f64)> {
    let key: Option<Key> = by.iter().map(|name| row.key.get(name).cloned()).collect();
    let part = key.zip(row.values.get(column).copied());
    if part.is_none() {
        counts.rows_without_column += 1;
    }
    part
}

/// Returns the memory of a track, made where it is new; counts and refuses it beyond the limit.
fn entry<'a, T>(
    tracks: &'a mut BTreeMap<Key, T>,
    key: &Key,
    max: usize,
    counts: &mut Counts,
    new: impl FnOnce() -> T,
) -> Option<&'a mut T> {
    if tracks.len() >= max && !tracks.contains_key(key) {
        counts.tracks_refused += 1;
        return None;
    }
    Some(tracks.entry(key.clone()).or_insert_with(new))
}

fn track(view: &str, column: &str, by: &[String], key: &Key) -> Track {
    let key = by.iter().cloned().zip(key.iter().cloned()).collect();
    Track { view: view.to_owned(), column: column.to_owned(), key }
}

/// Maps as lists of pairs: the keys of JSON objects must be strings, those of tracks are lists.
mod pairs {
    use super::*;

    pub fn serialize<T: Serialize, S: serde::Serializer>(map: &BTreeMap<Key, T>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Key, T>, D::Error> {
        Vec::<(Key, T)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}
