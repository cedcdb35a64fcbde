//! How long rows are kept: of each table, of each view, and of samples by the names of their metrics. Rows leave with the
//! whole files that hold nothing else; samples of metrics that are kept for shorter than others, out of files of their day.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Result;
use tracing::{debug, warn};

use super::service::chain;
use super::settings::Settings;
use crate::config::raw;
use crate::query::CORRECTED;
use crate::query::access::is_like;
use crate::store::{Store, StoreError};

const SAMPLES: &str = "samples";
const SERIES_ID: &str = "series_id";
/// The tables that records go to, to which `store.retention` applies.
const RECORDS: [&str; 4] = [SAMPLES, "events", "rejected", "late"];
/// Rows of the loop's memory: only the newest is ever read.
const MEMORY: &str = "state";
const MEMORY_KEEP: Duration = Duration::from_secs(3600);

/// How long what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    by_table: BTreeMap<String, Duration>,
    /// Patterns of metrics' names.
    by_metric: Vec<(String, Duration)>,
}

impl Retention {
    pub fn of(store: &raw::Store) -> Retention {
        let records = store.retention.into_iter().flat_map(|keep| RECORDS.map(|table| (table.to_owned(), keep.get())));
        let said = store.retention_by_table.iter().map(|(table, keep)| (table.clone(), keep.get()));
        let memory = [(MEMORY.to_owned(), MEMORY_KEEP)];
        Retention {
            by_table: records.chain(said).chain(memory).collect(),
            by_metric: store.retention_by_metric.iter().map(|(pattern, keep)| (pattern.clone(), keep.get())).collect(),
        }
    }

    /// Returns it with that of the views that run.
    fn with_views(mut self, settings: &Settings) -> Retention {
        for view in &settings.views {
            let Some(keep) = view.retention else { continue };
            self.by_table.insert(view.name.to_string(), keep);
            self.by_table.insert(format!("{}{CORRECTED}", view.name), keep);
        }
        self
    }

    /// Returns how long samples of a metric are kept; for good where it is none.
    fn of_metric(&self, name: &str) -> Option<Duration> {
        let fits = self.by_metric.iter().filter(|(pattern, _)| is_like(pattern, name)).map(|(_, keep)| *keep);
        fits.max().or_else(|| self.by_table.get(SAMPLES).copied())
    }

    /// Returns every span that some samples are kept for.
    fn spans(&self) -> Vec<Duration> {
        self.by_metric.iter().map(|(_, keep)| *keep).chain(self.by_table.get(SAMPLES).copied()).collect()
    }
}

/// Sees that rows past their time leave, round after round.
#[derive(Default)]
pub struct Keeper {
    /// Files that hold nothing of what is kept for so long or shorter.
    clean: HashMap<String, Duration>,
    /// By what they are clean.
    retention: Retention,
}

impl Keeper {
    /// Takes out what is past its time. A failure is told, and tried again the next time.
    pub async fn keep(&mut self, settings: &Settings, store: &Store) {
        let retention = settings.upkeep.retention.clone().with_views(settings);
        if retention != self.retention {
            self.clean.clear();
            self.retention = retention;
        }
        let by_metric = !self.retention.by_metric.is_empty();
        for (table, keep) in self.retention.by_table.iter().filter(|(table, _)| !(by_metric && *table == SAMPLES)) {
            match store.retain(table, *keep).await {
                Ok(0) | Err(StoreError::Unknown { .. }) => {}
                Ok(rows) => debug!(table, rows, "rows past their retention left"),
                Err(error) => warn!(table, error = chain(&error), "rows past their retention leave later"),
            }
        }
        if by_metric && let Err(error) = self.keep_samples(store).await {
            warn!(table = SAMPLES, error = chain(&*error), "rows past their retention leave later");
        }
    }

    async fn keep_samples(&mut self, store: &Store) -> Result<()> {
        let mut past = store.past(SAMPLES, &self.retention.spans())?;
        past.retain(|past| self.clean.get(past.path()).is_none_or(|clean| *clean < past.keep));
        if past.is_empty() {
            return Ok(());
        }
        let kept = self.kept(store).await?;
        for past in &past {
            let leaves = |id: i64| kept.get(&id).is_some_and(|keep| *keep <= past.keep);
            match store.expire(past, SERIES_ID, &leaves).await {
                Ok(Some(0)) => _ = self.clean.insert(past.path().to_owned(), past.keep),
                Ok(Some(rows)) => debug!(table = SAMPLES, rows, "rows past their retention left"),
                Ok(None) => debug!(table = SAMPLES, "another changed the file first"),
                // The others are none the worse for it.
                Err(error) => warn!(file = past.path(), error = chain(&error), "rows past their retention leave later"),
            }
        }
        let live: std::collections::HashSet<String> = store.files().into_iter().map(|(_, file)| file.path).collect();
        self.clean.retain(|path, _| live.contains(path));
        Ok(())
    }

    /// Returns how long the samples of each series are kept; of those that are not there, for good.
    async fn kept(&self, store: &Store) -> Result<HashMap<i64, Duration>> {
        let index = store.series().await?;
        let index = index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (mut kept, mut by_name) = (HashMap::new(), HashMap::new());
        for series in (0..index.len() as u32).filter_map(|row| index.get(row)) {
            let keep = *by_name.entry(series.name).or_insert_with(|| self.retention.of_metric(series.name));
            kept.extend(keep.map(|keep| (series.id.0, keep)));
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_that_fits_holds() {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        let retention = Retention {
            by_table: BTreeMap::from([(SAMPLES.to_owned(), days(30))]),
            by_metric: vec![("debug_*".to_owned(), days(1)), ("*_slo".to_owned(), days(700))],
        };
        let kept = |name: &str| retention.of_metric(name).unwrap();
        assert_eq!((kept("up"), kept("debug_a"), kept("debug_slo")), (days(30), days(1), days(700)));
    }
}
