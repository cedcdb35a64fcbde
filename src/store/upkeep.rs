//! What keeps a store fast and small: merges of small files, retention, the deletion of what nobody reads any more; and
//! what there is to know about it. One process does this at a time; where two do, the later of two changes to the same
//! file gives up.

use std::time::Duration;

use futures::StreamExt as _;

use super::compaction::{self, Eagerness, File, Merge};
use super::table::{Leaves, Merged, Vacuumed};
use super::verify::{Damage, Verified};
use super::{Store, StoreError};
use crate::model::time::EventTime;

/// Files verified at a time.
const VERIFIED_AT_ONCE: usize = 4;

/// A merge that is due.
#[derive(Clone, Debug)]
pub struct Due {
    table: String,
    merge: Merge,
}

impl Due {
    pub fn table(&self) -> &str {
        &self.table
    }

    pub fn files(&self) -> usize {
        self.merge.files.len()
    }

    pub fn bytes(&self) -> u64 {
        self.merge.files.iter().map(|file| file.bytes).sum()
    }
}

/// A file that may hold rows past their time: of those that are kept for as long as `keep` or shorter.
#[derive(Clone, Debug)]
pub struct Past {
    table: String,
    file: File,
    pub keep: Duration,
}

impl Past {
    /// Returns the file's path in its table, which no other file ever has.
    pub fn path(&self) -> &str {
        &self.file.path
    }
}

/// What a table holds, as of its newest commit.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Held {
    pub table: String,
    pub rows: u64,
    pub files: usize,
    pub bytes: u64,
    /// Files that are part of no finished day.
    pub loose_files: usize,
    /// The times of the oldest and newest row in microseconds, where the table has a time.
    pub times: Option<(i64, i64)>,
}

impl Store {
    /// Returns the merges that are due, table after table.
    pub fn due(&self, eagerness: Eagerness) -> Vec<Due> {
        let of = |table: std::sync::Arc<super::Table>| {
            let merges = compaction::due(table.live(), eagerness);
            merges.into_iter().map(move |merge| Due { table: table.spec().name.clone(), merge })
        };
        self.tables().order.into_iter().flat_map(of).collect()
    }

    /// Carries out one merge, beside commits and readers. Returns none where somebody else changed the files meanwhile.
    ///
    /// # Errors
    /// A file that cannot be read, or holds other rows than the log says; nothing is changed then.
    pub async fn merge(&self, due: &Due) -> Result<Option<Merged>, StoreError> {
        self.table(&due.table)?.merge(&due.merge, &self.committing, &self.pinning).await
    }

    /// Takes rows out of a table whose time is more than `keep` before its newest row: whole files of them. Returns how
    /// many rows that were.
    pub async fn retain(&self, table: &str, keep: Duration) -> Result<u64, StoreError> {
        let table = self.table(table)?;
        let mut files = table.live();
        let Some(newest) = files.iter().filter_map(|file| file.times).map(|(_, newest)| newest).max() else {
            return Ok(0);
        };
        let keep_from = newest.saturating_sub(i64::try_from(keep.as_micros()).unwrap_or(i64::MAX));
        files.retain(|file| file.times.is_some_and(|(_, newest)| newest < keep_from));
        if files.is_empty() || !table.forget(&files, &self.committing, &self.pinning).await? {
            return Ok(0);
        }
        Ok(files.iter().map(|file| file.rows).sum())
    }

    /// Returns the files of a table whose newest row is older than the shortest of `spans`, each with the longest span that it
    /// is past. Ages count from the table's newest row.
    pub fn past(&self, table: &str, spans: &[Duration]) -> Result<Vec<Past>, StoreError> {
        let files = self.table(table)?.live();
        let Some(now) = files.iter().filter_map(|file| file.times).map(|(_, newest)| newest).max() else {
            return Ok(Vec::new());
        };
        let age = |file: &File| Some(Duration::from_micros(now.abs_diff(file.times?.1)));
        let past = |file: File| {
            let age = age(&file)?;
            let keep = spans.iter().copied().filter(|span| *span < age).max()?;
            Some(Past { table: table.to_owned(), file, keep })
        };
        Ok(files.into_iter().filter_map(past).collect())
    }

    /// Takes rows out of a file: those with a value in an Int64 column that `leaves` says. Returns how many that were; none
    /// where somebody else changed the file meanwhile.
    ///
    /// # Errors
    /// A file that cannot be read, or holds other rows than the log says; nothing is changed then.
    pub async fn expire(
        &self,
        past: &Past,
        column: &str,
        leaves: &(dyn Fn(i64) -> bool + Send + Sync),
    ) -> Result<Option<u64>, StoreError> {
        let leaves = Leaves { column, of: leaves };
        self.table(&past.table)?.expire(&past.file, leaves, &self.committing, &self.pinning).await
    }

    /// Deletes files that were taken out of their table longer than `keep` ago, and files as old that no commit named; and
    /// entries of logs that are summed up. With `dry_run` only tells. `now`: the time of day.
    pub async fn vacuum(&self, keep: Duration, now: EventTime, dry_run: bool) -> Result<Vacuumed, StoreError> {
        let mut all = Vacuumed::default();
        for table in self.tables().order {
            let done = table.vacuum(keep, now, dry_run).await?;
            all.files += done.files;
            all.bytes += done.bytes;
            all.log_entries += done.log_entries;
        }
        Ok(all)
    }

    /// Returns every live file, with the name of its table.
    pub fn files(&self) -> Vec<(String, File)> {
        let of = |table: std::sync::Arc<super::Table>| {
            let name = table.spec().name.clone();
            table.live().into_iter().map(move |file| (name.clone(), file))
        };
        self.tables().order.into_iter().flat_map(of).collect()
    }

    /// Tells what each table holds.
    pub fn held(&self) -> Vec<Held> {
        let of = |table: std::sync::Arc<super::Table>| {
            let files = table.live();
            let oldest = files.iter().filter_map(|file| file.times).map(|(oldest, _)| oldest).min();
            let newest = files.iter().filter_map(|file| file.times).map(|(_, newest)| newest).max();
            Held {
                table: table.spec().name.clone(),
                rows: files.iter().map(|file| file.rows).sum(),
                files: files.len(),
                bytes: files.iter().map(|file| file.bytes).sum(),
                loose_files: files.iter().filter(|file| !file.is_finished).count(),
                times: oldest.zip(newest),
            }
        };
        self.tables().order.into_iter().map(of).collect()
    }

    /// Reads every live file of a table through; tells each that is damaged, and what was looked at.
    pub async fn verify(
        &self,
        table: &str,
        mut progress: impl FnMut(u64),
    ) -> Result<(Verified, Vec<Damage>), StoreError> {
        let table = self.table(table)?;
        let (mut seen, mut damages) = (Verified::default(), Vec::new());
        let files = table.live();
        let checks = files.iter().map(|file| {
            let table = &table;
            async move { (file, table.verify_file(file).await) }
        });
        let mut checks = futures::stream::iter(checks).buffer_unordered(VERIFIED_AT_ONCE);
        while let Some((file, damage)) = checks.next().await {
            seen.files += 1;
            seen.rows += file.rows;
            seen.bytes += file.bytes;
            progress(file.bytes);
            damages.extend(damage);
        }
        damages.sort_by(|a, b| a.file.cmp(&b.file));
        Ok((seen, damages))
    }
}
