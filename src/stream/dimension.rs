//! Dimension tables: fixed rows that a stream is joined with, found by key.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::Result;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionContext;

use super::StreamError;
use super::definition::Dimension;
use super::intake::unnamed;
use super::operand::evaluate;

/// The rows of a dimension table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub name: String,
    pub rows: RecordBatch,
}

impl Dimension {
    /// Returns the columns it declares, and whether its first line names them (CSV).
    ///
    /// # Errors
    /// A type that SQL does not know.
    pub async fn schema(&self) -> Result<(SchemaRef, bool), StreamError> {
        let failed = |source| StreamError::Plan { file: self.file.clone(), source };
        let state = SessionContext::new().state();
        let dialect = datafusion::config::Dialect::PostgreSQL;
        let statement = state.sql_to_statement(&self.statement, &dialect).map_err(failed)?;
        match state.statement_to_plan(statement).await.map_err(failed)? {
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => {
                let header = table.options.get("format.has_header").is_none_or(|header| header != "false");
                Ok((Arc::new(table.schema.as_arrow().clone()), header))
            }
            _ => Err(StreamError::Unsupported {
                file: self.file.clone(),
                message: "expected CREATE EXTERNAL TABLE".to_owned(),
            }),
        }
    }
}

/// How rows find their partner in a dimension table.
pub(super) struct Lookup {
    /// What the lookup was planned from: two with equal words do the same.
    pub words: String,
    /// Over the columns of the input so far, by position.
    on: Vec<Arc<dyn PhysicalExpr>>,
    converter: RowConverter,
    row_of: HashMap<OwnedRow, u32>,
    table: RecordBatch,
    /// Whether rows without a partner stay, with NULLs.
    pub outer: bool,
}

impl Lookup {
    /// # Errors
    /// Two rows of the table with the same key.
    pub fn new(
        words: String,
        on: Vec<Arc<dyn PhysicalExpr>>,
        table: &Table,
        columns: &[usize],
        outer: bool,
    ) -> Result<Result<Lookup, String>> {
        let keys: Vec<ArrayRef> = columns.iter().map(|&at| Arc::clone(table.rows.column(at))).collect();
        let fields = keys.iter().map(|key| SortField::new(key.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let mut row_of = HashMap::new();
        for (at, row) in (0u32..).zip(converter.convert_columns(&keys)?.iter()) {
            if keys.iter().any(|key| key.is_null(at as usize)) {
                continue;
            }
            if row_of.insert(row.owned(), at).is_some() {
                let line = at + 1;
                return Ok(Err(format!("table {} has more than one row of a key; row {line} repeats one", table.name)));
            }
        }
        Ok(Ok(Lookup { words, on, converter, row_of, table: table.rows.clone(), outer }))
    }

    /// Returns the partner of each row, NULL where it has none, and the table's columns beside the rows.
    pub fn join(&self, columns: &[ArrayRef], rows: usize) -> Result<(UInt32Array, Vec<ArrayRef>)> {
        let batch = unnamed(columns.to_vec(), rows)?;
        let keys = self.on.iter().map(|on| evaluate(on, &batch)).collect::<Result<Vec<_>>>()?;
        let converted = self.converter.convert_columns(&keys)?;
        let found: UInt32Array = converted
            .iter()
            .enumerate()
            .map(|(at, row)| match keys.iter().any(|key| key.is_null(at)) {
                true => None,
                false => self.row_of.get(&row.owned()).copied(),
            })
            .collect();
        let joined = self.table.columns().iter().map(|column| Ok(take(column, &found, None)?));
        Ok((found.clone(), joined.collect::<Result<Vec<_>>>()?))
    }
}
