//! How the rows of a head become a commit: written as files, then named in the log under compare-and-set.
//!
//! delta-rs does not refuse a stale position by itself, so every commit here is made on the very snapshot whose
//! positions were checked, with the library's own retries off: whoever comes second fails and looks again. Never tells
//! readers of a commit before all that it refers to is durable.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TransactionError};
use deltalake::kernel::{Action, Add, Transaction, Version};
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError, Path};
use object_store::ObjectStoreExt as _;
use tracing::{debug, warn};
use uuid::Uuid;

use super::super::StoreError;
use super::super::file::{self, Encoded};
use super::{Committed, DAY, Sealed, Shown, Table, provide};

/// Under which word a commit carries its id in the log.
const COMMIT_ID: &str = "bellwetherCommit";
/// Where the log tells of its newest checkpoint.
const LAST_CHECKPOINT: &str = "_delta_log/_last_checkpoint";
/// After how many commits the log is summed up in a checkpoint.
const COMMITS_PER_CHECKPOINT: u64 = 100;
/// How often a commit is tried where it failed and nobody else went on either.
pub(super) const FAILURES_MAX: usize = 5;
/// How often a commit is tried where others went on instead.
pub(super) const RACES_MAX: u32 = 1000;
/// The longest wait after a lost race; about as long as a log entry takes to be written to a cloud.
const BACKOFF_MAX: Duration = Duration::from_millis(128);

impl Table {
    /// Commits what was sealed. Readers step from the head's rows to the commit's in one moment, under `pinning`.
    ///
    /// An error of the library does not say that the commit is not there: after each the log is read on. Found there, it
    /// landed; positions that have moved without it are somebody else's.
    pub async fn commit_sealed(&self, pinning: &RwLock<()>) -> Result<Option<Committed>, StoreError> {
        let Some(sealed) = self.head().sealed.clone() else { return Ok(None) };
        for app in sealed.positions.keys() {
            self.position(app).await?;
        }
        let mut landed = match self.shared || self.is_behind() {
            true => self.catch_up(pinning).await?,
            false => None,
        };
        let (mut failures, mut races) = (0, 0);
        loop {
            // It landed, or others have committed all its rows.
            let Some(sealed) = self.head().sealed.clone() else { return Ok(landed) };
            // Before the first attempt too: the snapshot may show commits of others, come upon earlier.
            self.refuse_if_moved(sealed.positions.keys().map(String::as_str))?;
            let adds = self.write_files(&sealed).await?;
            let state = self.shown().state;
            let source = match self.commit_once(&state, adds, &sealed).await {
                Ok(state) => return self.show_own(state, pinning).await,
                Err(source) => source,
            };
            let outrun = is_outrun(&source);
            if outrun {
                debug!(table = self.spec.name, races, "another writer's commit came first");
            } else {
                warn!(table = self.spec.name, failures, error = %source, "reading the log again after a commit failed");
            }
            landed = self.catch_up(pinning).await?;
            if self.shown().state.version() > state.version() {
                races += 1;
            } else {
                failures += 1;
            }
            if (failures >= FAILURES_MAX || races >= RACES_MAX) && self.is_sealed() {
                self.refuse_if_moved(sealed.positions.keys().map(String::as_str))?;
                return Err(StoreError::Commit { table: self.spec.name.clone(), source });
            }
            if outrun {
                tokio::time::sleep(backoff(races)).await;
            }
        }
    }

    /// Shows the commit just made.
    async fn show_own(&self, state: DeltaTableState, pinning: &RwLock<()>) -> Result<Option<Committed>, StoreError> {
        let provider = provide(&self.spec.name, &self.log, state.snapshot()).await?;
        self.committed.store(state.version(), Ordering::Relaxed);
        self.head().land(state.version());
        let _shown_at_once = pinning.write().unwrap_or_else(PoisonError::into_inner);
        Ok(self.show(Shown { state, provider }))
    }

    /// Shows the newest commit there is. Returns what we committed, where our own commit is found to have landed.
    pub(super) async fn catch_up(&self, pinning: &RwLock<()>) -> Result<Option<Committed>, StoreError> {
        let Some(newer) = self.look_ahead().await? else { return Ok(None) };
        let _shown_at_once = pinning.write().unwrap_or_else(PoisonError::into_inner);
        Ok(self.show(newer))
    }

    /// Writes a checkpoint of our newest commit, where the last one of anybody is long ago.
    ///
    /// Only of our own: a checkpoint is written over one that is there, and while it is as good, it need not be as long,
    /// which would break whoever reads it by the length it had. Each commit having one writer, so has its checkpoint.
    pub async fn checkpoint_if_due(&self) -> Result<(), StoreError> {
        let committed = self.committed.load(Ordering::Relaxed);
        let is_due = || committed >= self.checkpointed.load(Ordering::Relaxed) + COMMITS_PER_CHECKPOINT;
        if !is_due() {
            return Ok(());
        }
        self.checkpointed.fetch_max(self.last_checkpoint().await, Ordering::Relaxed);
        if !is_due() {
            return Ok(());
        }
        let failed = |source| StoreError::Commit { table: self.spec.name.clone(), source };
        let mut table = DeltaTable::new(self.log.clone());
        table.load_version(committed).await.map_err(failed)?;
        deltalake::checkpoints::create_checkpoint(&table, None).await.map_err(failed)?;
        self.checkpointed.fetch_max(committed, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the version of the newest checkpoint as far as the log tells; it is no more than a hint.
    async fn last_checkpoint(&self) -> Version {
        let told = async {
            let found = self.log.object_store(None).get(&Path::from(LAST_CHECKPOINT)).await.ok()?;
            let hint: serde_json::Value = serde_json::from_slice(&found.bytes().await.ok()?).ok()?;
            hint.get("version")?.as_u64()
        };
        told.await.unwrap_or(0)
    }

    async fn write_files(&self, sealed: &Sealed) -> Result<Vec<Add>, StoreError> {
        let files = self.encode(sealed).await?;
        let mut written = sealed.written.clone();
        for (index, file) in files.iter().enumerate().skip(written.len()) {
            written.push(self.write_file(sealed.id, index, file).await?);
            if let Some(sealed) = &mut self.head().sealed {
                sealed.written = written.clone();
            }
        }
        Ok(written)
    }

    async fn encode(&self, sealed: &Sealed) -> Result<Arc<[Encoded]>, StoreError> {
        if let Some(files) = &sealed.files {
            return Ok(files.clone());
        }
        if sealed.batches.is_empty() {
            return Ok(Arc::default());
        }
        let (spec, batches) = (self.spec.clone(), sealed.batches.clone());
        let files: Arc<[Encoded]> = tokio::task::spawn_blocking(move || file::encode(&spec, &batches)).await??.into();
        if let Some(sealed) = &mut self.head().sealed {
            sealed.files = Some(files.clone());
        }
        Ok(files)
    }

    async fn write_file(&self, commit: Uuid, index: usize, file: &Encoded) -> Result<Add, StoreError> {
        let name = format!("part-{index:05}-{commit}.zstd.parquet");
        self.put_file(name, file, true).await
    }

    /// Writes a file where its day belongs; returns what a commit says of it, and whether its rows are new.
    pub(super) async fn put_file(&self, name: String, file: &Encoded, data_change: bool) -> Result<Add, StoreError> {
        let failed = |source| StoreError::Write { table: self.spec.name.clone(), source };
        let day = file.day.map(file::day_text);
        let path = day.as_ref().map_or_else(|| name.clone(), |day| format!("{DAY}={day}/{name}"));
        let store = self.log.object_store(None);
        store.put(&Path::from(path.as_str()), file.bytes.clone().into()).await.map_err(failed)?;
        let written = store.head(&Path::from(path.as_str())).await.map_err(failed)?;
        Ok(Add {
            path,
            partition_values: day.into_iter().map(|day| (DAY.to_owned(), Some(day))).collect(),
            size: file.bytes.len() as i64,
            modification_time: written.last_modified.timestamp_millis(),
            data_change,
            stats: Some(file.stats.clone()),
            ..Add::default()
        })
    }

    async fn commit_once(
        &self,
        state: &DeltaTableState,
        adds: Vec<Add>,
        sealed: &Sealed,
    ) -> Result<DeltaTableState, DeltaTableError> {
        let transactions = sealed.positions.iter().map(|(app, next)| Transaction::new(app, *next)).collect();
        let properties = CommitProperties::default()
            .with_metadata([(COMMIT_ID.to_owned(), sealed.id.to_string().into())])
            .with_max_retries(0)
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false))
            .with_application_transactions(transactions);
        let partition_by = self.spec.day_of.map(|_| vec![DAY.to_owned()]);
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None };
        let done = CommitBuilder::from(properties)
            .with_actions(adds.into_iter().map(Action::Add).collect())
            .build(Some(state), self.log.clone(), operation)
            .await?;
        Ok(done.snapshot())
    }

    /// Refuses to go on where another writer has moved one of these apps from where we know it.
    pub(super) fn refuse_if_moved<'a>(&self, apps: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
        let head = self.head();
        for app in apps {
            let expected = head.stored.get(app).copied().flatten();
            let found = head.moved.get(app).copied();
            if found.is_some() && found != expected {
                let app = app.to_owned();
                return Err(StoreError::Fenced { table: self.spec.name.clone(), app, expected, found });
            }
        }
        Ok(())
    }
}

/// Tells whether a commit failed for no other reason than that another came first.
pub(super) fn is_outrun(error: &DeltaTableError) -> bool {
    use DeltaTableError::{Transaction, VersionAlreadyExists};
    matches!(error, VersionAlreadyExists(_) | Transaction { source: TransactionError::MaxCommitAttempts(_) })
}

/// Returns how long to wait after so many lost races: a random part of a span that grows, so that writers which fell
/// into step fall out of it.
pub(super) fn backoff(races: u32) -> Duration {
    let span = Duration::from_millis(1 << races.min(10)).min(BACKOFF_MAX);
    let random = Uuid::new_v4().as_u128() as u32;
    span.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
