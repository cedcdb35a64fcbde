//! Files of a table rewritten as fewer, and files taken out of it: through a commit of our own, on the very snapshot in
//! which all of them are still there.
//!
//! Rows are neither made nor lost: what was read is counted against what the log says and what was written. Whoever took
//! one of the files away meanwhile has come first, and nothing is changed then.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};

use arrow::array::RecordBatch;
use arrow::compute::{SortOptions, concat_batches};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet};
use datafusion::physical_plan::sorts::streaming_merge::StreamingMergeBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, LogicalFileView, Remove, Version};
use deltalake::protocol::DeltaOperation;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTableError, Path};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use parquet::arrow::ParquetRecordBatchStreamBuilder;
use tracing::warn;
use uuid::Uuid;

use super::super::StoreError;
use super::super::compaction::{FILE_BYTES, File, Merge};
use super::super::file::{self, Shape, Writer};
use super::commit::{FAILURES_MAX, RACES_MAX, backoff, is_outrun};
use super::expiry::Leaves;
use super::{DAY, Shown, Table, conform, provide};

/// How the name of a file begins that is part of a finished day.
const FINISHED: &str = "day-";
const BATCH_ROWS: usize = 8192;

/// What one merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub files_before: usize,
    pub files_after: usize,
    pub rows: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// How a swap ended.
enum Swapped {
    Landed,
    /// Another took files away first; `never` where what was tried cannot land any more.
    Outrun {
        never: bool,
    },
}

impl Table {
    /// Returns the live files as of the commit shown.
    pub fn live(&self) -> Vec<File> {
        let time = self.spec.time();
        let of = |view: LogicalFileView| describe(&view, time);
        self.shown().state.log_data().iter().map(of).collect()
    }

    /// Rewrites files as one run in the order of the table. Returns none where another changed them meanwhile.
    ///
    /// # Errors
    /// A file that is not there, cannot be read, or holds other rows than the log says; nothing is changed then.
    pub async fn merge(
        &self,
        merge: &Merge,
        turn: &tokio::sync::Mutex<()>,
        pinning: &RwLock<()>,
    ) -> Result<Option<Merged>, StoreError> {
        self.rewrite_where(merge, None, turn, pinning).await
    }

    /// Rewrites files, without the rows that are to leave.
    pub(super) async fn rewrite_where(
        &self,
        merge: &Merge,
        leaves: Option<Leaves<'_>>,
        turn: &tokio::sync::Mutex<()>,
        pinning: &RwLock<()>,
    ) -> Result<Option<Merged>, StoreError> {
        let mut written = Vec::new();
        let swapped = match self.rewrite(merge, leaves, &mut written).await {
            Ok(()) => {
                let _turn = turn.lock().await;
                self.swap(&merge.files, written.clone(), leaves.is_some(), pinning).await
            }
            // Nothing names what was written.
            Err(error) => {
                self.discard(&written).await;
                return Err(error);
            }
        };
        match swapped? {
            Swapped::Landed => {
                let sum = |of: fn(&File) -> u64| merge.files.iter().map(of).sum();
                Ok(Some(Merged {
                    files_before: merge.files.len(),
                    files_after: written.len(),
                    rows: sum(|file| file.rows),
                    bytes_before: sum(|file| file.bytes),
                    bytes_after: written.iter().map(|add| add.size as u64).sum(),
                }))
            }
            Swapped::Outrun { never } => {
                if never {
                    self.discard(&written).await;
                }
                Ok(None)
            }
        }
    }

    /// Takes files out of the table, with the rows in them. Returns whether they were all still there.
    pub async fn forget(
        &self,
        files: &[File],
        turn: &tokio::sync::Mutex<()>,
        pinning: &RwLock<()>,
    ) -> Result<bool, StoreError> {
        let _turn = turn.lock().await;
        Ok(matches!(self.swap(files, Vec::new(), true, pinning).await?, Swapped::Landed))
    }

    /// Writes the rows of files, merged, as new ones.
    async fn rewrite(
        &self,
        merge: &Merge,
        leaves: Option<Leaves<'_>>,
        written: &mut Vec<Add>,
    ) -> Result<(), StoreError> {
        let day = merge.files.first().and_then(|file| file.day).filter(|_| self.spec.day_of.is_some());
        let kind = if merge.finishes { FINISHED } else { "run-" };
        let id = Uuid::new_v4();
        let mut rows = self.merged(&merge.files).await?;
        let (mut writer, mut count) = (Writer::new(&self.spec, Shape::Compacted)?, 0);
        while let Some(batch) = rows.try_next().await.map_err(|source| self.unreadable(source))? {
            count += batch.num_rows() as u64;
            writer.write(&leaves.map_or_else(|| batch.clone(), |leaves| leaves.without(&batch)))?;
            if writer.size() as u64 >= FILE_BYTES {
                let full = std::mem::replace(&mut writer, Writer::new(&self.spec, Shape::Compacted)?);
                let name = format!("{kind}{:05}-{id}.zstd.parquet", written.len());
                written.push(self.put_file(name, &full.close(day)?, leaves.is_some()).await?);
            }
        }
        let expected: u64 = merge.files.iter().map(|file| file.rows).sum();
        if count != expected {
            return Err(StoreError::Damaged {
                table: self.spec.name.clone(),
                what: format!("{} files hold {count} rows where the log says {expected}", merge.files.len()),
            });
        }
        if writer.rows() > 0 {
            let name = format!("{kind}{:05}-{id}.zstd.parquet", written.len());
            written.push(self.put_file(name, &writer.close(day)?, leaves.is_some()).await?);
        }
        Ok(())
    }

    /// Returns the rows of files in the order of the table.
    async fn merged(&self, files: &[File]) -> Result<SendableRecordBatchStream, StoreError> {
        let mut streams = Vec::with_capacity(files.len());
        for file in files {
            streams.push(self.read(file).await?);
        }
        let schema = self.spec.schema.clone();
        let order = self.spec.order(Shape::Compacted);
        let order = order
            .iter()
            .filter_map(|name| Some(PhysicalSortExpr::new(col(name, &schema).ok()?, SortOptions::default())));
        let Some(order) = LexOrdering::new(order.collect::<Vec<_>>()) else {
            let all = stream::iter(streams).flatten();
            return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, all)));
        };
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        StreamingMergeBuilder::new()
            .with_streams(streams)
            .with_schema(schema)
            .with_expressions(&order)
            .with_metrics(BaselineMetrics::new(&ExecutionPlanMetricsSet::new(), 0))
            .with_batch_size(BATCH_ROWS)
            .with_reservation(MemoryConsumer::new("merge").register(&pool))
            .build()
            .map_err(|source| self.unreadable(source))
    }

    /// Returns the rows of one file in the order of the table, which those that somebody else wrote need not have.
    async fn read(&self, live: &File) -> Result<SendableRecordBatchStream, StoreError> {
        let (rows, is_sorted) = self.stored_rows(live).await?;
        let schema = self.spec.schema.clone();
        if is_sorted || self.spec.order(Shape::Compacted).is_empty() {
            return Ok(rows);
        }
        let rows: Vec<RecordBatch> = rows.try_collect().await.map_err(|source| self.unreadable(source))?;
        let encode = |source| StoreError::Encode { table: self.spec.name.clone(), source };
        let all = concat_batches(&schema, &rows).map_err(encode)?;
        let sorted = file::sort(&self.spec.order(Shape::Compacted), &all).map_err(encode)?;
        let slices = (0..sorted.num_rows())
            .step_by(BATCH_ROWS)
            .map(move |at| Ok(sorted.slice(at, BATCH_ROWS.min(sorted.num_rows() - at))));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(slices.collect::<Vec<_>>()))))
    }

    /// Returns the rows of one file as they stand in it, and whether that is the order of the table.
    pub(in crate::store) async fn stored_rows(
        &self,
        live: &File,
    ) -> Result<(SendableRecordBatchStream, bool), StoreError> {
        let failed = |source| StoreError::File { table: self.spec.name.clone(), file: live.path.clone(), source };
        let builder = ParquetRecordBatchStreamBuilder::new(self.reader(live)).await.map_err(failed)?;
        let is_sorted = file::is_sorted(&self.spec, builder.metadata());
        let (spec, name) = (self.spec.clone(), live.path.clone());
        let rows = builder.with_batch_size(BATCH_ROWS).build().map_err(failed)?.map(move |batch| {
            let named = |source: parquet::errors::ParquetError| source_of(&name, source.into());
            conform(&spec, batch.map_err(named)?)
                .map_err(|failed| source_of(&name, DataFusionError::External(Box::new(failed))))
        });
        Ok((Box::pin(RecordBatchStreamAdapter::new(self.spec.schema.clone(), rows)), is_sorted))
    }

    /// Puts files in the place of others, in one commit. Whoever calls holds the turn to commit.
    async fn swap(
        &self,
        old: &[File],
        new: Vec<Add>,
        drops_rows: bool,
        pinning: &RwLock<()>,
    ) -> Result<Swapped, StoreError> {
        let (mut failures, mut races, mut tried) = (0, 0, None::<Version>);
        loop {
            self.catch_up(pinning).await?;
            let state = self.shown().state;
            let live: HashMap<String, LogicalFileView> =
                state.log_data().iter().map(|view| (view.path().into_owned(), view)).collect();
            let is_done = new.iter().all(|add| live.contains_key(&add.path))
                && !old.iter().any(|file| live.contains_key(&file.path));
            // Files that are gone and have no successor may be another's work, but where an attempt of ours was unanswered.
            if is_done && if new.is_empty() { failures > 0 } else { tried.is_some() } {
                return Ok(Swapped::Landed);
            }
            let removes: Option<Vec<Remove>> =
                old.iter().map(|file| Some(live.get(&file.path)?.remove_action(drops_rows))).collect();
            let Some(removes) = removes else {
                // A version that another's commit took will never be ours.
                return Ok(Swapped::Outrun { never: tried.is_none_or(|tried| state.version() >= tried) });
            };
            tried = Some(state.version() + 1);
            let source = match self.swap_once(&state, removes, new.clone()).await {
                Ok(state) => {
                    self.show_swapped(state, pinning).await?;
                    return Ok(Swapped::Landed);
                }
                Err(source) => source,
            };
            let outrun = is_outrun(&source);
            if outrun {
                races += 1;
            } else {
                failures += 1;
                warn!(table = self.spec.name, failures, error = %source, "reading the log again after a rewrite failed");
            }
            if failures >= FAILURES_MAX || races >= RACES_MAX {
                return Err(StoreError::Commit { table: self.spec.name.clone(), source });
            }
            tokio::time::sleep(backoff(races)).await;
        }
    }

    async fn swap_once(
        &self,
        state: &DeltaTableState,
        removes: Vec<Remove>,
        adds: Vec<Add>,
    ) -> Result<DeltaTableState, DeltaTableError> {
        let properties = CommitProperties::default()
            .with_max_retries(0)
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false));
        let operation = match adds.is_empty() {
            true => DeltaOperation::Delete { predicate: None },
            false => DeltaOperation::Optimize { predicate: None, target_size: FILE_BYTES as i64 },
        };
        let actions = removes.into_iter().map(Action::Remove).chain(adds.into_iter().map(Action::Add));
        let done = CommitBuilder::from(properties).with_actions(actions.collect()).build(
            Some(state),
            self.log.clone(),
            operation,
        );
        Ok(done.await?.snapshot())
    }

    async fn show_swapped(&self, state: DeltaTableState, pinning: &RwLock<()>) -> Result<(), StoreError> {
        let provider = provide(&self.spec.name, &self.log, state.snapshot()).await?;
        self.committed.store(state.version(), Ordering::Relaxed);
        self.head().pass_own(state.version());
        let _shown_at_once = pinning.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.show(Shown { state, provider });
        Ok(())
    }

    /// Deletes files that no commit names or ever will. One that stays is deleted by a vacuum.
    async fn discard(&self, files: &[Add]) {
        let store = self.log.object_store(None);
        for file in files {
            let _ = store.delete(&Path::from(file.path.as_str())).await;
        }
    }

    /// Returns the paths that a commit on its way is about to name.
    pub(super) fn about_to_be_named(&self) -> HashSet<String> {
        self.head().sealed.iter().flat_map(|sealed| sealed.written.iter().map(|add| add.path.clone())).collect()
    }

    pub(in crate::store) fn unreadable(&self, source: DataFusionError) -> StoreError {
        StoreError::Read { table: self.spec.name.clone(), source }
    }
}

fn source_of(file: &str, source: DataFusionError) -> DataFusionError {
    source.context(format!("in file {file}"))
}

/// Returns what the log says of a file. `time` names the column of the table's time.
fn describe(view: &LogicalFileView, time: Option<&str>) -> File {
    let stats: serde_json::Value = view.stats().and_then(|stats| serde_json::from_str(&stats).ok()).unwrap_or_default();
    let at = |of: &str| time.and_then(|time| file::time_of(stats.get(of)?.get(time)?.as_str()?));
    let times = at("minValues").zip(at("maxValues"));
    let path = view.path().into_owned();
    let split = view.partition_values_map().remove(DAY).flatten().and_then(|day| file::day_of(&day));
    let rows = view.num_records().map(|rows| rows as u64).or_else(|| stats["numRecords"].as_u64());
    let is_finished = path.rsplit('/').next().is_some_and(|name| name.starts_with(FINISHED));
    File {
        bytes: view.size().max(0) as u64,
        rows: rows.filter(|_| view.deletion_vector_descriptor().is_none()).unwrap_or(0),
        day: split.or_else(|| times.map(|(_, newest)| file::day_at(newest))),
        times,
        is_finished,
        path,
    }
}
