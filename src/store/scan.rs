//! A table as of one moment: the files of a commit and the rows in front of it, scanned as one. Read-only.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::MemTable;
use datafusion::datasource::TableType;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

#[derive(Debug)]
pub(super) struct PinnedTable {
    schema: SchemaRef,
    committed: Arc<dyn TableProvider>,
    head: Vec<RecordBatch>,
}

impl PinnedTable {
    /// Shows the columns of `schema`, each of which `committed` must have under the same name and type.
    pub fn new(schema: SchemaRef, committed: Arc<dyn TableProvider>, head: Vec<RecordBatch>) -> Self {
        PinnedTable { schema, committed, head }
    }
}

#[async_trait]
impl TableProvider for PinnedTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters only help to skip files and row groups; the engine applies them again.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns: Vec<usize> = match projection {
            Some(columns) => columns.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let names = columns.iter().map(|&at| self.schema.field(at).name());
        let inner = self.committed.schema();
        let mapped = names.map(|name| inner.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        let files = self.committed.scan(state, Some(&mapped), filters, limit).await?;
        if self.head.is_empty() {
            return Ok(files);
        }
        let head = MemTable::try_new(self.schema.clone(), vec![self.head.clone()])?;
        let rows = head.scan(state, Some(&columns), &[], limit).await?;
        UnionExec::try_new(vec![files, rows])
    }
}
