//! Rows that are kept for shorter than others of their table: files whose newest row is old enough are written again without
//! them. Whether a file holds any is read from the one column that tells.

use std::fmt;
use std::sync::RwLock;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt as _;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use tokio::sync::Mutex;

use super::super::StoreError;
use super::super::compaction::{File, Merge};
use super::Table;

/// Which rows are to leave: those with certain values in one Int64 column.
#[derive(Clone, Copy)]
pub(in crate::store) struct Leaves<'a> {
    pub column: &'a str,
    pub of: &'a (dyn Fn(i64) -> bool + Send + Sync),
}

impl fmt::Debug for Leaves<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").field("column", &self.column).finish_non_exhaustive()
    }
}

impl Leaves<'_> {
    /// Returns the rows that stay.
    pub fn without(&self, batch: &RecordBatch) -> RecordBatch {
        let Some(values) = values(batch, self.column) else { return batch.clone() };
        let stays: BooleanArray = values.iter().map(|value| Some(!(self.of)(*value))).collect();
        filter_record_batch(batch, &stays).expect("a filter made from a column of the batch is as long as it")
    }
}

impl Table {
    /// Takes rows out of a file. Returns how many that were; none where another changed the file meanwhile.
    ///
    /// # Errors
    /// A file that cannot be read, or holds other rows than the log says; nothing is changed then.
    pub async fn expire(
        &self,
        file: &File,
        leaves: Leaves<'_>,
        turn: &Mutex<()>,
        pinning: &RwLock<()>,
    ) -> Result<Option<u64>, StoreError> {
        let left = self.leaving(file, leaves).await?;
        if left == 0 {
            return Ok(Some(0));
        }
        let landed = if left == file.rows {
            self.forget(std::slice::from_ref(file), turn, pinning).await?
        } else {
            let alone = Merge { files: vec![file.clone()], finishes: file.is_finished };
            self.rewrite_where(&alone, Some(leaves), turn, pinning).await?.is_some()
        };
        Ok(landed.then_some(left))
    }

    /// Counts the rows of a file that are to leave.
    async fn leaving(&self, file: &File, leaves: Leaves<'_>) -> Result<u64, StoreError> {
        let failed = |source| StoreError::File { table: self.spec.name.clone(), file: file.path.clone(), source };
        let builder = ParquetRecordBatchStreamBuilder::new(self.reader(file)).await.map_err(failed)?;
        let only = ProjectionMask::columns(builder.parquet_schema(), [leaves.column]);
        let mut rows = builder.with_projection(only).build().map_err(failed)?;
        let mut left = 0;
        while let Some(batch) = rows.try_next().await.map_err(failed)? {
            let Some(values) = values(&batch, leaves.column) else { return Ok(0) };
            // Rows of one value stand together.
            left += values.chunk_by(|a, b| a == b).filter(|run| (leaves.of)(run[0])).map(<[i64]>::len).sum::<usize>();
        }
        Ok(left as u64)
    }
}

fn values<'a>(batch: &'a RecordBatch, column: &str) -> Option<&'a [i64]> {
    Some(batch.column_by_name(column)?.as_primitive_opt::<Int64Type>()?.values())
}
