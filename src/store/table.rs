//! One Delta table with one writer: a head of rows not yet committed, and commits under compare-and-set.
//!
//! delta-rs does not refuse a stale position by itself, so every commit here is made on the very snapshot whose
//! positions were checked, with the library's own retries off: whoever comes second fails and looks again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;
use deltalake::delta_datafusion::TableProviderBuilder;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, EagerSnapshot, StructType, Transaction, Version};
use deltalake::logstore::LogStoreRef;
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError, Path};
use object_store::ObjectStoreExt as _;
use tracing::warn;
use uuid::Uuid;

use super::StoreError;
use super::file::{self, Encoded};
use super::location::Location;
use super::scan::PinnedTable;

/// The partition column of tables that are split by day.
const DAY: &str = "day";
/// Under which word a commit carries its id in the log.
const COMMIT_ID: &str = "bellwetherCommit";
/// After how many commits the log is summed up in a checkpoint.
const COMMITS_PER_CHECKPOINT: u64 = 100;
/// How often a commit is tried anew when somebody else's commit came first.
const ATTEMPTS_MAX: usize = 5;

/// What a table looks like.
#[derive(Clone, Debug)]
pub struct TableSpec {
    pub name: String,
    /// Columns as written and queried; the day of a table split by day is no column of it.
    pub schema: SchemaRef,
    /// The timestamp column whose UTC day splits the table.
    pub day_of: Option<&'static str>,
    /// The order of rows within a file.
    pub sort_by: Vec<String>,
}

/// What one commit wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub rows: usize,
    pub bytes: usize,
}

pub(super) struct Table {
    spec: TableSpec,
    log: LogStoreRef,
    head: Mutex<Head>,
    shown: RwLock<Shown>,
    checkpointed: AtomicU64,
}

#[derive(Default)]
struct Head {
    open: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    /// Where each app stands with the rows of `open`.
    positions: BTreeMap<String, i64>,
    sealed: Option<Sealed>,
    /// Where each app stands as far as we know: read when first asked for, then moved by our own commits alone.
    stored: BTreeMap<String, Option<i64>>,
    /// Where other writers have moved an app to in commits that we came upon. One that is not where we know it is lost.
    moved: BTreeMap<String, i64>,
}

/// Rows on their way into a commit. Kept through failures, with the files already written.
#[derive(Clone)]
struct Sealed {
    /// Names the commit in the log, and its files: what is found under it is ours, whatever an error said before.
    id: Uuid,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    positions: BTreeMap<String, i64>,
    /// The rows as files. Kept, so that one written twice is the same and a disk that fills up fills with no copies.
    files: Option<Arc<[Encoded]>>,
    written: Vec<Add>,
}

/// The newest commit known, as queries see it.
#[derive(Clone)]
struct Shown {
    state: DeltaTableState,
    provider: Arc<dyn TableProvider>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

impl Table {
    pub async fn open(location: &Location, spec: TableSpec) -> Result<Table, StoreError> {
        let failed = |source| StoreError::Open { table: spec.name.clone(), source };
        location.settle(&spec.name).await?;
        let log = location.table(&spec.name)?;
        let state = match log.is_delta_table_location().await.map_err(failed)? {
            true => DeltaTableState::try_new(log.as_ref(), None).await.map_err(failed)?,
            false => create(&spec, &log).await.map_err(failed)?,
        };
        let provider = provide(&spec.name, &log, state.snapshot()).await?;
        check_schema(&spec, &provider)?;
        let checkpointed = AtomicU64::new(state.version());
        let shown = RwLock::new(Shown { state, provider });
        Ok(Table { spec, log, head: Mutex::default(), shown, checkpointed })
    }

    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Tells whether rows of these columns can go into the table.
    pub fn check(&self, spec: &TableSpec) -> Result<(), StoreError> {
        check_schema(spec, &self.shown().provider)
    }

    pub fn append(&self, batch: Option<RecordBatch>, positions: &[(&str, i64)]) -> Result<(), StoreError> {
        let batch = batch.filter(|batch| batch.num_rows() > 0);
        let batch = batch.map(|batch| conform(&self.spec, batch)).transpose()?;
        let mut head = self.head();
        if let Some(batch) = batch {
            head.rows += batch.num_rows();
            head.bytes += batch.get_array_memory_size();
            head.open.push(batch);
        }
        for (app, next) in positions {
            head.positions.insert((*app).to_owned(), *next);
        }
        Ok(())
    }

    pub fn head_bytes(&self) -> usize {
        let head = self.head();
        head.bytes + head.sealed.as_ref().map_or(0, |sealed| sealed.bytes)
    }

    pub fn head_rows(&self) -> usize {
        let head = self.head();
        head.rows + head.sealed.as_ref().map_or(0, |sealed| sealed.rows)
    }

    /// Returns where an app stands: where our own commits left it, or else where it stood when it was first asked for.
    pub async fn position(&self, app: &str) -> Result<Option<i64>, StoreError> {
        if let Some(known) = self.head().stored.get(app) {
            return Ok(*known);
        }
        let state = self.shown().state;
        let found = state.transaction_version(self.log.as_ref(), app).await;
        let found = found.map_err(|source| self.unread(source))?;
        // A commit that was shown meanwhile knows better.
        Ok(*self.head().stored.entry(app.to_owned()).or_insert(found))
    }

    /// Tells whether rows put aside are still waiting for their commit.
    pub fn is_sealed(&self) -> bool {
        self.head().sealed.is_some()
    }

    /// Puts the rows of this moment aside for the next commit.
    pub fn seal(&self) {
        let mut head = self.head();
        debug_assert!(head.sealed.is_none(), "what was sealed before is committed first");
        if head.open.is_empty() && head.positions.is_empty() {
            return;
        }
        let sealed = Sealed {
            id: Uuid::new_v4(),
            batches: std::mem::take(&mut head.open),
            rows: std::mem::take(&mut head.rows),
            bytes: std::mem::take(&mut head.bytes),
            positions: std::mem::take(&mut head.positions),
            files: None,
            written: Vec::new(),
        };
        head.sealed = Some(sealed);
    }

    /// Commits what was sealed. Readers step from the head's rows to the commit's in one moment, under `pinning`.
    pub async fn commit_sealed(&self, pinning: &RwLock<()>) -> Result<Option<Committed>, StoreError> {
        let Some(sealed) = self.head().sealed.clone() else { return Ok(None) };
        let adds = self.write_files(&sealed).await?;
        let bytes = adds.iter().map(|add| add.size as usize).sum();
        let state = self.commit_actions(adds, &sealed).await?;
        let provider = provide(&self.spec.name, &self.log, state.snapshot()).await?;
        let _shown_at_once = pinning.write().unwrap_or_else(PoisonError::into_inner);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Shown { state, provider };
        let mut head = self.head();
        head.sealed = None;
        head.stored.extend(sealed.positions.into_iter().map(|(app, next)| (app, Some(next))));
        Ok(Some(Committed { rows: sealed.rows, bytes }))
    }

    pub async fn checkpoint_if_due(&self) -> Result<(), StoreError> {
        let version = self.shown().state.version();
        if version < self.checkpointed.load(Ordering::Relaxed) + COMMITS_PER_CHECKPOINT {
            return Ok(());
        }
        let failed = |source| StoreError::Commit { table: self.spec.name.clone(), source };
        let mut table = DeltaTable::new(self.log.clone());
        table.load().await.map_err(failed)?;
        deltalake::checkpoints::create_checkpoint(&table, None).await.map_err(failed)?;
        self.checkpointed.store(version, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the commit shown and the rows in front of it, as one table.
    pub fn pin(&self) -> Arc<dyn TableProvider> {
        let head = self.head();
        let mut rows: Vec<RecordBatch> = head.sealed.iter().flat_map(|sealed| sealed.batches.iter().cloned()).collect();
        rows.extend(head.open.iter().cloned());
        Arc::new(PinnedTable::new(self.spec.schema.clone(), self.shown().provider, rows))
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
        let failed = |source| StoreError::Write { table: self.spec.name.clone(), source };
        let name = format!("part-{index:05}-{commit}.zstd.parquet");
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
            data_change: true,
            stats: Some(file.stats.clone()),
            ..Add::default()
        })
    }

    /// Commits files and positions on a snapshot in which the positions are the expected ones.
    ///
    /// An error of the library does not say that the commit is not there: after each the log is read again. Found there,
    /// it landed; positions that have moved without it are somebody else's.
    async fn commit_actions(&self, adds: Vec<Add>, sealed: &Sealed) -> Result<DeltaTableState, StoreError> {
        for app in sealed.positions.keys() {
            self.position(app).await?;
        }
        let mut state = self.shown().state;
        let shown = state.version();
        let mut attempts_left = ATTEMPTS_MAX;
        loop {
            // Before the first attempt too: the snapshot may show commits of others, come upon by an earlier commit.
            self.refuse_if_moved(sealed)?;
            attempts_left -= 1;
            let source = match self.commit_once(&state, &adds, sealed).await {
                Ok(state) => {
                    self.head().moved.retain(|app, _| !sealed.positions.contains_key(app));
                    return Ok(state);
                }
                Err(source) => source,
            };
            warn!(table = self.spec.name, attempts_left, error = %source, "reading the log again after a commit failed");
            state = DeltaTableState::try_new(self.log.as_ref(), None).await.map_err(|source| self.unread(source))?;
            if self.look_through(shown + 1..=state.version(), sealed).await? {
                return Ok(state);
            }
            if attempts_left == 0 {
                self.refuse_if_moved(sealed)?;
                return Err(StoreError::Commit { table: self.spec.name.clone(), source });
            }
        }
    }

    async fn commit_once(
        &self,
        state: &DeltaTableState,
        adds: &[Add],
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
            .with_actions(adds.iter().cloned().map(Action::Add).collect())
            .build(Some(state), self.log.clone(), operation)
            .await?;
        Ok(done.snapshot())
    }

    /// Looks through the newest versions of the log for our own commit, which may have landed without an answer, and for
    /// what others moved. Positions alone cannot tell: another writer that took one partition of several may have moved
    /// it to the very place where this commit would have.
    async fn look_through(&self, versions: RangeInclusive<Version>, sealed: &Sealed) -> Result<bool, StoreError> {
        let id = sealed.id.to_string();
        let mut landed = false;
        for version in versions {
            let entry = self.log.read_commit_entry(version).await.map_err(|source| self.unread(source))?;
            let entry = entry.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let mut head = self.head();
            // Nobody else can have written an id that has not left this process.
            if entry.contains(&id) {
                landed = true;
                head.moved.retain(|app, _| !sealed.positions.contains_key(app));
            } else {
                head.moved.extend(entry.lines().filter_map(transaction));
            }
        }
        Ok(landed)
    }

    fn refuse_if_moved(&self, sealed: &Sealed) -> Result<(), StoreError> {
        let head = self.head();
        for app in sealed.positions.keys() {
            let expected = head.stored.get(app).copied().flatten();
            let found = head.moved.get(app).copied();
            if found.is_some() && found != expected {
                return Err(StoreError::Fenced { table: self.spec.name.clone(), app: app.clone(), expected, found });
            }
        }
        Ok(())
    }

    fn unread(&self, source: DeltaTableError) -> StoreError {
        StoreError::Open { table: self.spec.name.clone(), source }
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> Shown {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the app and its position from a line of the log that moves one.
fn transaction(line: &str) -> Option<(String, i64)> {
    let action: serde_json::Value = line.contains("\"txn\"").then(|| serde_json::from_str(line).ok())??;
    let moved = action.get("txn")?;
    Some((moved.get("appId")?.as_str()?.to_owned(), moved.get("version")?.as_i64()?))
}

/// Returns a table that somebody else may be writing, as of its newest commit.
pub(super) async fn provider_at(location: &Location, name: &str) -> Result<Arc<dyn TableProvider>, StoreError> {
    let log = location.table(name)?;
    let snapshot = EagerSnapshot::try_new(log.as_ref(), None)
        .await
        .map_err(|source| StoreError::Open { table: name.to_owned(), source })?;
    let provider = provide(name, &log, &snapshot).await?;
    let fields: Vec<Arc<Field>> =
        provider.schema().fields().iter().filter(|field| field.name() != DAY).cloned().collect();
    Ok(Arc::new(PinnedTable::new(Arc::new(Schema::new(fields)), provider, Vec::new())))
}

async fn create(spec: &TableSpec, log: &LogStoreRef) -> Result<DeltaTableState, DeltaTableError> {
    let mut fields: Vec<Arc<Field>> = spec.schema.fields().iter().cloned().collect();
    if spec.day_of.is_some() {
        fields.push(Arc::new(Field::new(DAY, DataType::Date32, true)));
    }
    let columns: StructType = (&Schema::new(fields)).try_into_kernel()?;
    let mut builder = CreateBuilder::new()
        .with_log_store(log.clone())
        .with_table_name(&spec.name)
        .with_save_mode(SaveMode::Ignore)
        .with_columns(columns.fields().cloned());
    if spec.day_of.is_some() {
        builder = builder.with_partition_columns([DAY]);
    }
    Ok(builder.await?.snapshot()?.clone())
}

async fn provide(
    name: &str,
    log: &LogStoreRef,
    snapshot: &EagerSnapshot,
) -> Result<Arc<dyn TableProvider>, StoreError> {
    // Plain strings: the head's rows and the files' must be of one type to stand in one table.
    let mut config = SessionConfig::new();
    config.options_mut().execution.parquet.schema_force_view_types = false;
    let session = Arc::new(SessionStateBuilder::new().with_config(config).build());
    TableProviderBuilder::default()
        .with_log_store(log.clone())
        .with_eager_snapshot(snapshot.clone())
        .with_session(session)
        .await
        .map_err(|source| StoreError::Read { table: name.to_owned(), source })
}

fn check_schema(spec: &TableSpec, provider: &Arc<dyn TableProvider>) -> Result<(), StoreError> {
    let found = provider.schema();
    let fits =
        spec.schema.fields().iter().all(|wanted| {
            found.field_with_name(wanted.name()).is_ok_and(|field| field.data_type() == wanted.data_type())
        });
    match fits && found.fields().len() == spec.schema.fields().len() + usize::from(spec.day_of.is_some()) {
        true => Ok(()),
        false => Err(StoreError::Schema {
            table: spec.name.clone(),
            found: describe(&found),
            expected: describe(&spec.schema),
        }),
    }
}

fn describe(schema: &Schema) -> String {
    let columns: Vec<String> = schema
        .fields()
        .iter()
        .filter(|field| field.name() != DAY)
        .map(|field| format!("{} {}", field.name(), field.data_type()))
        .collect();
    columns.join(", ")
}

/// Puts a batch under the table's own schema: the same columns, in the table's order and of its nullability.
fn conform(spec: &TableSpec, batch: RecordBatch) -> Result<RecordBatch, StoreError> {
    let column = |field: &FieldRef| batch.schema_ref().index_of(field.name()).map(|at| batch.column(at).clone());
    let columns = spec.schema.fields().iter().map(column).collect::<Result<Vec<_>, _>>();
    columns
        .and_then(|columns| RecordBatch::try_new(spec.schema.clone(), columns))
        .map_err(|source| StoreError::Encode { table: spec.name.clone(), source })
}
