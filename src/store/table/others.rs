//! What other writers commit to a table while this one writes it: where they move positions, which values they add, and
//! the newest commit for readers.
//!
//! Each entry of the log after the one a table was opened at, or that was committed here, is gone through once. Never
//! writes anything; whoever calls holds the turn to commit.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use datafusion::error::DataFusionError;
use deltalake::kernel::{Action, Version};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTableError, Path};
use object_store::ObjectStoreExt as _;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use uuid::Uuid;

use super::super::StoreError;
use super::{Committed, Head, Sealed, Shown, Table, TableSpec, provide};

/// What is known of the commits of others.
#[derive(Default)]
pub(super) struct Others {
    /// Through which version, inclusive, the log was gone through.
    seen: Version,
    /// Files whose values are still to be read, by their paths, of a table that holds each value once.
    unread: Vec<String>,
    /// Values of commits that are yet to be shown.
    learned: HashSet<i64>,
    /// Values of commits that are shown. Grows with what others find: no more than the table has rows.
    known: HashSet<i64>,
}

impl Others {
    pub fn since(seen: Version) -> Others {
        Others { seen, ..Others::default() }
    }

    /// Returns the rows that no shown commit of others holds, if there are any.
    pub fn without_known(&self, spec: &TableSpec, batch: RecordBatch) -> Option<RecordBatch> {
        match spec.unique_by {
            Some(column) if !self.known.is_empty() => without(&batch, column, &self.known),
            _ => Some(batch),
        }
    }
}

impl Head {
    /// Takes note of our own commit.
    pub fn land(&mut self, version: Version) {
        self.others.seen = version;
        if let Some(sealed) = &mut self.sealed {
            sealed.landed = true;
            self.moved.retain(|app, _| !sealed.positions.contains_key(app));
        }
    }

    /// Takes note of a commit of ours that moves no rows and no position.
    pub fn pass_own(&mut self, version: Version) {
        self.others.seen = version;
    }

    /// Goes through the next entry of the log, which may be our own commit that landed without an answer, for what others
    /// moved and added. Positions alone cannot tell: another writer that took one partition of several may have moved it
    /// to the very place where our commit would have.
    fn go_through(&mut self, entry: &str, unique: bool) {
        let version = self.others.seen + 1;
        // Nobody else can have written an id that has not left this process.
        if self.sealed.as_ref().is_some_and(|sealed| entry.contains(&sealed.id.to_string())) {
            self.land(version);
            return;
        }
        self.others.seen = version;
        self.moved.extend(entry.lines().filter_map(transaction));
        if unique {
            self.others.unread.extend(entry.lines().filter_map(added));
        }
    }

    /// Leaves out rows that others have committed.
    ///
    /// Sealed rows that change get another id, and with it other files. No commit under the old id can land any more:
    /// each was tried for a version that has been gone through since, and was somebody else's.
    fn leave_out(&mut self, column: &str, values: &HashSet<i64>) {
        self.open = std::mem::take(&mut self.open).iter().filter_map(|rows| without(rows, column, values)).collect();
        (self.rows, self.bytes) = size(&self.open);
        let Some(sealed) = &mut self.sealed else { return };
        let left: Vec<RecordBatch> = sealed.batches.iter().filter_map(|rows| without(rows, column, values)).collect();
        let (rows, bytes) = size(&left);
        if rows == 0 && sealed.positions.is_empty() {
            self.sealed = None;
        } else if rows < sealed.rows {
            let (id, positions) = (Uuid::new_v4(), std::mem::take(&mut sealed.positions));
            *sealed =
                Sealed { id, batches: left, rows, bytes, positions, files: None, written: Vec::new(), landed: false };
        }
    }
}

impl Table {
    /// Tells whether the log is known to hold more than is shown.
    pub(super) fn is_behind(&self) -> bool {
        self.head().others.seen > self.shown().state.version()
    }

    /// Reads the log on; returns its newest commit where that is newer than the one shown, ready to be shown. Costs one
    /// request where nothing is new.
    pub async fn look_ahead(&self) -> Result<Option<Shown>, StoreError> {
        let newest = self.read_entries().await?;
        let mut state = self.shown().state;
        if state.version() == newest {
            return Ok(None);
        }
        self.settling
            .settle()
            .await
            .map_err(|failed| self.unread(DeltaTableError::GenericError { source: failed.into() }))?;
        self.learn().await?;
        state.update(self.log.as_ref(), Some(newest)).await.map_err(|source| self.unread(source))?;
        let provider = provide(&self.spec.name, &self.log, state.snapshot()).await?;
        Ok(Some(Shown { state, provider }))
    }

    /// Shows a commit that was looked ahead for, or made. Whoever calls holds `pinning` exclusively: rows leave the head in
    /// the moment they are seen in the commit. Returns what we committed, where our own commit is shown.
    pub fn show(&self, newer: Shown) -> Option<Committed> {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = newer;
        let mut head = self.head();
        let landed = head.sealed.take_if(|sealed| sealed.landed).map(|sealed| {
            let bytes = sealed.written.iter().map(|add| add.size as usize).sum();
            head.stored.extend(sealed.positions.into_iter().map(|(app, next)| (app, Some(next))));
            Committed { rows: sealed.rows, bytes }
        });
        if let Some(column) = self.spec.unique_by {
            let learned = std::mem::take(&mut head.others.learned);
            if !learned.is_empty() {
                head.leave_out(column, &learned);
                head.others.known.extend(learned);
            }
        }
        landed
    }

    /// Expects apps where they stand in the newest commit from now on, and returns where that is.
    pub async fn claim(&self, apps: &[&str], pinning: &RwLock<()>) -> Result<Vec<Option<i64>>, StoreError> {
        self.catch_up(pinning).await?;
        let mut stand = Vec::with_capacity(apps.len());
        for app in apps {
            let moved = self.head().moved.get(*app).copied();
            stand.push(match moved {
                Some(to) => Some(to),
                // Nobody else moved it since it was first asked for.
                None => self.position(app).await?,
            });
        }
        let waits = |app: &&str| {
            let head = self.head();
            let sealed = head.sealed.as_ref().is_some_and(|sealed| sealed.positions.contains_key(*app));
            sealed || head.positions.contains_key(*app)
        };
        self.refuse_if_moved(apps.iter().copied().filter(|app| waits(app)).collect::<Vec<_>>().into_iter())?;
        let mut head = self.head();
        for (app, position) in apps.iter().zip(&stand) {
            head.stored.insert((*app).to_owned(), *position);
            head.moved.remove(*app);
        }
        Ok(stand)
    }

    /// Goes through all entries of the log that are new; returns the version of the last.
    async fn read_entries(&self) -> Result<Version, StoreError> {
        loop {
            let seen = self.head().others.seen;
            let entry = self.log.read_commit_entry(seen + 1).await.map_err(|source| self.unread(source))?;
            let Some(entry) = entry else { return Ok(seen) };
            self.head().go_through(&String::from_utf8_lossy(&entry), self.spec.unique_by.is_some());
        }
    }

    async fn is_live(&self, path: &str) -> Result<bool, StoreError> {
        Ok(self.live_paths().await?.iter().any(|live| live == path))
    }

    async fn live_paths(&self) -> Result<Vec<String>, StoreError> {
        let newest = DeltaTableState::try_new(self.log.as_ref(), None).await.map_err(|source| self.unread(source))?;
        Ok(newest.log_data().iter().map(|view| view.path().into_owned()).collect())
    }

    /// Reads which values others have added.
    async fn learn(&self) -> Result<(), StoreError> {
        let Some(column) = self.spec.unique_by else { return Ok(()) };
        loop {
            let Some(path) = self.head().others.unread.last().cloned() else { return Ok(()) };
            let failed = |source| StoreError::Read { table: self.spec.name.clone(), source };
            let file = match self.log.object_store(None).get(&Path::from(path.as_str())).await {
                // Merged into another and deleted, all while we were away.
                Err(object_store::Error::NotFound { .. }) if !self.is_live(&path).await? => {
                    self.head().others.unread = self.live_paths().await?;
                    continue;
                }
                file => file.map_err(|source| failed(source.into()))?,
            };
            let bytes = file.bytes().await.map_err(|source| failed(source.into()))?;
            let values = values(bytes, column).map_err(failed)?;
            let mut head = self.head();
            head.others.unread.pop();
            head.others.learned.extend(values);
        }
    }
}

/// Returns the app and its position from a line of the log that moves one.
fn transaction(line: &str) -> Option<(String, i64)> {
    let action: serde_json::Value = line.contains("\"txn\"").then(|| serde_json::from_str(line).ok())??;
    let moved = action.get("txn")?;
    Some((moved.get("appId")?.as_str()?.to_owned(), moved.get("version")?.as_i64()?))
}

/// Returns the path of the file from a line of the log that adds one with new rows.
fn added(line: &str) -> Option<String> {
    match line.contains("\"add\"").then(|| serde_json::from_str(line).ok())?? {
        Action::Add(add) if add.data_change => Some(add.path),
        _ => None,
    }
}

/// Returns the values of one column of a file. The file is fetched whole: what one commit adds is small, and a request
/// costs more than its bytes; only the column is decoded.
fn values(file: bytes::Bytes, column: &str) -> Result<Vec<i64>, DataFusionError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let only = ProjectionMask::columns(reader.parquet_schema(), [column]);
    let mut values = Vec::new();
    for batch in reader.with_projection(only).build()? {
        let batch = batch?;
        if let Some(found) = batch.column_by_name(column).and_then(|found| found.as_primitive_opt::<Int64Type>()) {
            values.extend(found.iter().flatten());
        }
    }
    Ok(values)
}

/// Returns the rows whose value is none of these, if there are any.
fn without(batch: &RecordBatch, column: &str, values: &HashSet<i64>) -> Option<RecordBatch> {
    let Some(found) = batch.column_by_name(column).and_then(|found| found.as_primitive_opt::<Int64Type>()) else {
        debug_assert!(false, "{column} is an Int64 column of its table");
        return Some(batch.clone());
    };
    let stays: BooleanArray =
        found.iter().map(|value| Some(value.is_none_or(|value| !values.contains(&value)))).collect();
    let left = filter_record_batch(batch, &stays).expect("a filter made from a column of the batch is as long as it");
    (left.num_rows() > 0).then_some(left)
}

/// Returns the rows and bytes of batches.
fn size(batches: &[RecordBatch]) -> (usize, usize) {
    let of = |batch: &RecordBatch| (batch.num_rows(), batch.get_array_memory_size());
    batches.iter().map(of).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}
