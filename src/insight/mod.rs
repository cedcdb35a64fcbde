//! Anomalies, outliers and forecasts over the rows of views: what is watched, fed window by window.
//!
//! A pure function of its settings and of the closed windows it was given; all of its state can be saved, and continues
//! bit for bit. Must never read a clock, nor treat a missing row as a zero.

pub mod detect;
mod exact;
pub mod features;
pub mod forecast;
pub mod outlier;
pub mod settings;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::settings::Settings;
use self::watch::{AnomalyWatch, ForecastWatch, OutlierWatch};
use crate::model::finding::{Anomaly, Forecast, Track};
use crate::model::time::EventTime;

/// Why insight could not be set up, or its saved state not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("insight on {view}.{column}: expected 1 <= windows_min <= windows <= {max}, got {min} of {of}")]
    Persistence { view: String, column: String, min: usize, of: usize, max: u32 },
    #[error("insight on {view}.{column}: expected a level above 0 and below 1, such as 0.95, got {got}")]
    Level { view: String, column: String, got: f64 },
    #[error("insight on {view}.{column}: expected a {what} longer than zero")]
    ZeroDuration { view: String, column: String, what: &'static str },
    #[error("insight on {view}.{column} is asked for twice; remove one of the two entries")]
    Twice { view: String, column: String },
    #[error("failed to save the state of insight")]
    Save { source: serde_json::Error },
    #[error("failed to read the saved state of insight; it is of another version or damaged, and can be dropped")]
    Restore { source: serde_json::Error },
}

/// One row of a view's closed window, its columns told apart by type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub key: BTreeMap<String, String>,
    pub values: BTreeMap<String, f64>,
}

/// What one closed window gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// What was detected, in order of entry and row.
    pub anomalies: Vec<Anomaly>,
    /// The score of every track that was scored, detected or not.
    pub scores: Vec<(Track, f64)>,
    pub forecasts: Vec<Forecast>,
}

/// What insight did not do, by reason, since it was set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows of tracks beyond `tracks_max`.
    pub tracks_refused: u64,
    /// Rows that lack a key column or the value column of an entry.
    pub rows_without_column: u64,
    /// Points, groups and forecasts abstained from, by reason.
    pub abstentions: BTreeMap<String, u64>,
}

impl Counts {
    fn abstain(&mut self, reason: &'static str) {
        *self.abstentions.entry(reason.to_owned()).or_default() += 1;
    }
}

/// Everything that is watched, with all its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Insight {
    tracks_max: usize,
    state: State,
    counts: Counts,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    anomalies: Vec<AnomalyWatch>,
    outliers: Vec<OutlierWatch>,
    forecasts: Vec<ForecastWatch>,
}

impl Insight {
    /// Sets up what the settings ask for, without any memory.
    ///
    /// # Errors
    /// Names the first entry that cannot be.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let state = State {
            anomalies: settings.anomalies.iter().cloned().map(AnomalyWatch::new).collect(),
            outliers: settings.outliers.iter().cloned().map(OutlierWatch::try_new).collect::<Result<_, _>>()?,
            forecasts: settings.forecasts.iter().cloned().map(ForecastWatch::try_new).collect::<Result<_, _>>()?,
        };
        refuse_twins(settings)?;
        Ok(Insight { tracks_max: settings.tracks_max, state, counts: Counts::default() })
    }

    /// Sets up what the settings ask for, with the memory that was saved. An entry whose settings are not those it was
    /// saved with begins anew; those that are no longer asked for are dropped.
    pub fn restore(settings: &Settings, saved: &[u8]) -> Result<Self, Error> {
        let mut insight = Insight::new(settings)?;
        let saved: State = serde_json::from_slice(saved).map_err(|source| Error::Restore { source })?;
        adopt(&mut insight.state.anomalies, saved.anomalies, |watch| &watch.settings);
        adopt(&mut insight.state.outliers, saved.outliers, |watch| &watch.settings);
        adopt(&mut insight.state.forecasts, saved.forecasts, |watch| &watch.settings);
        Ok(insight)
    }

    /// Returns all memory as JSON text, for [`Insight::restore`]. Counts are not part of it.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&self.state).map_err(|source| Error::Save { source })
    }

    /// Tells whether anything is asked for of a view; of others no rows need to be given.
    pub fn watches(&self, view: &str) -> bool {
        let State { anomalies, outliers, forecasts } = &self.state;
        anomalies.iter().any(|watch| watch.settings.view == view)
            || outliers.iter().any(|watch| watch.settings.view == view)
            || forecasts.iter().any(|watch| watch.settings.view == view)
    }

    /// Takes in the rows of one closed window, `step` being the distance from one window of the view to the next.
    ///
    /// Windows of a view come in order of their ends; one that is not newer than the last is abstained from, so that a
    /// window told twice changes nothing.
    pub fn observe(&mut self, view: &str, window_end: EventTime, step: Duration, rows: &[Row]) -> Findings {
        let mut findings = Findings::default();
        let (tracks_max, counts) = (self.tracks_max, &mut self.counts);
        for watch in self.state.anomalies.iter_mut().filter(|watch| watch.settings.view == view) {
            watch.observe(window_end, rows, tracks_max, counts, &mut findings);
        }
        for watch in self.state.outliers.iter_mut().filter(|watch| watch.settings.view == view) {
            watch.observe(window_end, rows, tracks_max, counts, &mut findings);
        }
        for watch in self.state.forecasts.iter_mut().filter(|watch| watch.settings.view == view) {
            watch.observe(window_end, step, rows, tracks_max, counts, &mut findings);
        }
        findings
    }

    /// Returns what was not done, by reason, since this process set insight up.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns how many tracks are followed.
    pub fn tracks(&self) -> usize {
        let state = &self.state;
        state.anomalies.iter().map(AnomalyWatch::tracks).sum::<usize>()
            + state.outliers.iter().map(OutlierWatch::tracks).sum::<usize>()
            + state.forecasts.iter().map(ForecastWatch::tracks).sum::<usize>()
    }
}

/// Two alike would give two findings of one id.
fn refuse_twins(settings: &Settings) -> Result<(), Error> {
    let twice = |view: &str, column: &str| Error::Twice { view: view.to_owned(), column: column.to_owned() };
    for (at, one) in settings.anomalies.iter().enumerate() {
        if settings.anomalies.iter().skip(at + 1).any(|other| other == one) {
            return Err(twice(&one.view, &one.column));
        }
    }
    for (at, one) in settings.outliers.iter().enumerate() {
        let same = |other: &&settings::OutlierSettings| {
            (&other.view, &other.column, &other.group, &other.member)
                == (&one.view, &one.column, &one.group, &one.member)
        };
        if settings.outliers.iter().skip(at + 1).any(|other| same(&other)) {
            return Err(twice(&one.view, &one.column));
        }
    }
    for (at, one) in settings.forecasts.iter().enumerate() {
        let same = |other: &settings::ForecastSettings| {
            (&other.view, &other.column, &other.by) == (&one.view, &one.column, &one.by)
        };
        if settings.forecasts.iter().skip(at + 1).any(same) {
            return Err(twice(&one.view, &one.column));
        }
    }
    Ok(())
}

/// Puts the saved watches in place of the new ones of equal settings.
fn adopt<W, S: PartialEq>(new: &mut [W], saved: Vec<W>, settings: impl Fn(&W) -> &S) {
    for old in saved {
        if let Some(place) = new.iter_mut().find(|watch| settings(watch) == settings(&old)) {
            *place = old;
        }
    }
}
