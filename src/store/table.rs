//! One Delta table: a head of rows not yet committed, in front of the newest commit known.
//!
//! How rows become a commit is `commit`'s, what other writers commit meanwhile `others`'; never decides either here.

mod commit;
mod expiry;
mod others;
mod rewrite;
mod vacuum;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;
use deltalake::delta_datafusion::TableProviderBuilder;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::kernel::{Add, EagerSnapshot, StructType};
use deltalake::logstore::LogStoreRef;
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::SaveMode;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTableError, Path};
use uuid::Uuid;

use super::StoreError;
use super::compaction::File;
use super::file::{Encoded, Shape};
use super::location::{Location, Settling};
use super::reader::FileReader;
use super::scan::PinnedTable;
pub(super) use expiry::Leaves;
use others::Others;
pub use rewrite::Merged;
pub use vacuum::Vacuumed;

/// The partition column of tables that are split by day.
const DAY: &str = "day";

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
    /// The order of rows in a file made of others, where it is another.
    pub compact_by: &'static [&'static str],
    /// An Int64 column of which each value is in the table once, whoever writes it: rows with a value that another writer
    /// has committed since the store was opened are left out. What was there before, and what this writer has given
    /// already, is the caller's to know.
    pub unique_by: Option<&'static str>,
}

impl TableSpec {
    /// Returns the columns by which the rows of a file are sorted.
    pub(super) fn order(&self, shape: Shape) -> Vec<String> {
        match shape {
            Shape::Compacted if !self.compact_by.is_empty() => {
                self.compact_by.iter().map(|&name| name.to_owned()).collect()
            }
            _ => self.sort_by.clone(),
        }
    }

    /// Returns the column that tells of when a row is.
    pub(super) fn time(&self) -> Option<&str> {
        let is_time = |name: &&str| {
            let field = self.schema.field_with_name(name);
            field.is_ok_and(|field| matches!(field.data_type(), DataType::Timestamp(..)))
        };
        self.day_of.or_else(|| self.sort_by.first().map(String::as_str)).filter(is_time)
    }
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
    settling: Settling,
    /// Whether others write the table too, so that a commit looks for theirs first.
    shared: bool,
    /// Whether nobody else can be about to name a file in it.
    alone: bool,
    head: Mutex<Head>,
    shown: RwLock<Shown>,
    /// The newest version that we committed ourselves.
    committed: AtomicU64,
    /// The newest version known to be summed up in a checkpoint, or the one the table was opened at.
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
    others: Others,
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
    /// Whether the commit was found in the log, or made; it is yet to be shown.
    landed: bool,
}

/// The newest commit known, as queries see it.
#[derive(Clone)]
pub(super) struct Shown {
    state: DeltaTableState,
    provider: Arc<dyn TableProvider>,
}

impl Head {
    fn rows(&self) -> Vec<RecordBatch> {
        let sealed = self.sealed.iter().flat_map(|sealed| &sealed.batches);
        sealed.chain(&self.open).cloned().collect()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

impl Table {
    pub async fn open(location: &Location, spec: TableSpec) -> Result<Table, StoreError> {
        let failed = |source| StoreError::Open { table: spec.name.clone(), source };
        let (settling, log) = (location.settling(&spec.name), location.table(&spec.name)?);
        settling.settle().await?;
        let state = match log.is_delta_table_location().await.map_err(failed)? {
            true => DeltaTableState::try_new(log.as_ref(), None).await.map_err(failed)?,
            false => create(&spec, &log, &settling).await?,
        };
        if location.shared {
            // What came in since may be another's that is yet to be durable.
            settling.settle().await?;
        }
        let provider = provide(&spec.name, &log, state.snapshot()).await?;
        check_schema(&spec, &provider)?;
        let (committed, checkpointed) = (AtomicU64::new(0), AtomicU64::new(state.version()));
        let head = Mutex::new(Head { others: Others::since(state.version()), ..Head::default() });
        let shown = RwLock::new(Shown { state, provider });
        let (shared, alone) = (location.shared, location.alone);
        Ok(Table { spec, log, settling, shared, alone, head, shown, committed, checkpointed })
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
        let batch = batch.and_then(|batch| head.others.without_known(&self.spec, batch));
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
            landed: false,
        };
        head.sealed = Some(sealed);
    }

    /// Returns the commit shown and the rows in front of it, as one table.
    pub fn pin(&self) -> Arc<dyn TableProvider> {
        let head = self.head();
        Arc::new(PinnedTable::new(self.spec.schema.clone(), self.shown().provider, head.rows()))
    }

    /// Returns the rows in front of the commit shown.
    pub fn waiting(&self) -> Vec<RecordBatch> {
        self.head().rows()
    }

    /// Returns a reader of one of the table's files.
    pub fn reader(&self, file: &File) -> FileReader {
        FileReader { objects: self.log.object_store(None), path: Path::from(file.path.as_str()), bytes: file.bytes }
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

/// Makes a table. Where another writer makes it at the same time, theirs is taken.
async fn create(spec: &TableSpec, log: &LogStoreRef, settling: &Settling) -> Result<DeltaTableState, StoreError> {
    let failed = |source| StoreError::Open { table: spec.name.clone(), source };
    let refused = match create_first(spec, log).await {
        Ok(state) => return Ok(state),
        Err(refused) => refused,
    };
    settling.settle().await?;
    match log.is_delta_table_location().await.map_err(failed)? {
        true => DeltaTableState::try_new(log.as_ref(), None).await.map_err(failed),
        false => Err(failed(refused)),
    }
}

async fn create_first(spec: &TableSpec, log: &LogStoreRef) -> Result<DeltaTableState, DeltaTableError> {
    let mut fields: Vec<Arc<Field>> = spec.schema.fields().iter().cloned().collect();
    if spec.day_of.is_some() {
        fields.push(Arc::new(Field::new(DAY, DataType::Date32, true)));
    }
    let columns: StructType = (&Schema::new(fields)).try_into_kernel()?;
    let mut builder = CreateBuilder::new()
        .with_log_store(log.clone())
        .with_table_name(&spec.name)
        .with_save_mode(SaveMode::Ignore)
        // The library would commit the columns once more on top of another writer's.
        .with_commit_properties(CommitProperties::default().with_max_retries(0))
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
    let columns = found.fields().iter().filter(|field| field.name() != DAY).count();
    // A table that somebody else split by day may be read all the same.
    let is_split = spec.day_of.is_none() || found.field_with_name(DAY).is_ok();
    match fits && is_split && columns == spec.schema.fields().len() {
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
