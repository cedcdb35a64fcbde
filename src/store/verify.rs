//! Whether everything that the log names is there and reads as the log says. Changes nothing, and goes on after a fault:
//! what is lost is told file by file.

use std::error::Error as _;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use parquet::arrow::ParquetRecordBatchStreamBuilder;

use super::StoreError;
use super::compaction::File;
use super::table::Table;

/// One file, or one table, that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub table: String,
    /// The file, where it is one; else the whole table is meant.
    pub file: Option<String>,
    /// Rows that cannot be read any more, as far as the log tells.
    pub rows: u64,
    /// The times of the oldest and newest of them in microseconds, where the table has a time.
    pub times: Option<(i64, i64)>,
    pub what: String,
}

/// Tells whether an error is of the store that files lie in, rather than of what lies there.
pub(super) fn is_outage(error: &StoreError) -> bool {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref::<object_store::Error>());
    causes.any(|cause| !matches!(cause, object_store::Error::NotFound { .. }))
}

impl Damage {
    /// Returns that a table cannot be opened.
    pub(super) fn of_table(table: String, error: &StoreError) -> Damage {
        let cause = std::iter::successors(error.source(), |cause| (*cause).source()).last();
        let what = cause.map_or_else(|| error.to_string(), ToString::to_string);
        Damage { table, file: None, rows: 0, times: None, what: format!("its log cannot be read: {what}") }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub files: usize,
    pub rows: u64,
    pub bytes: u64,
}

impl Table {
    /// Reads one live file through, every page of it; returns what is wrong with it.
    pub(super) async fn verify_file(&self, live: &File) -> Option<Damage> {
        let what = match self.read_through(live).await {
            // What the log does not count is not held against it.
            Ok(rows) if rows == live.rows || live.rows == 0 => return None,
            Ok(rows) => format!("holds {rows} rows where the log says {}", live.rows),
            Err(what) => what,
        };
        let table = self.spec().name.clone();
        Some(Damage { table, file: Some(live.path.clone()), rows: live.rows, times: live.times, what })
    }

    async fn read_through(&self, live: &File) -> Result<u64, String> {
        let reader = self.reader(live);
        let found = reader.objects.head(&reader.path).await.map_err(|failed| match failed {
            object_store::Error::NotFound { .. } => "is missing".to_owned(),
            other => other.to_string(),
        })?;
        if found.size != live.bytes {
            return Err(format!("has {} bytes where the log says {}", found.size, live.bytes));
        }
        let file = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(|failed| failed.to_string())?;
        let rows = file.build().map_err(|failed| failed.to_string())?;
        rows.map(|batch| batch.map(|batch| batch.num_rows() as u64))
            .try_fold(0, |sum, rows| std::future::ready(Ok(sum + rows)))
            .await
            .map_err(|failed| failed.to_string())
    }
}
