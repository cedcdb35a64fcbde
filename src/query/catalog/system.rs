//! The schema `system`: what there is to know about the store, the series and the program itself, as tables. Each is made
//! anew when a query reads it.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder, ListBuilder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::{MemTable, TableType};
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

use super::series::{Known, text};
use crate::model::series::Series;
use crate::model::series::index::{Index, NAME, Rows};

/// A table whose rows are counted up when it is read.
#[derive(Clone)]
pub struct SystemTable {
    pub name: &'static str,
    pub schema: SchemaRef,
    pub rows: Arc<dyn Fn() -> Result<RecordBatch, ArrowError> + Send + Sync>,
}

impl fmt::Debug for SystemTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemTable").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for SystemTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        scan(state, (self.rows)()?, projection, limit).await
    }
}

async fn scan(
    state: &dyn Session,
    rows: RecordBatch,
    projection: Option<&Vec<usize>>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    MemTable::try_new(rows.schema(), vec![vec![rows]])?.scan(state, projection, &[], limit).await
}

/// Returns `metrics`: each metric with its kind, its unit, the labels that its series have, and how many they are.
pub fn metrics(series: Known) -> SystemTable {
    let labels = Field::new("labels", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), false);
    let schema = Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("unit", DataType::Utf8, false),
        labels,
        Field::new("series", DataType::Int64, false),
    ]));
    let rows = {
        let schema = schema.clone();
        move || {
            let index = series.read();
            let mut words: [StringBuilder; 3] = Default::default();
            let (mut labels, mut counts) = (ListBuilder::new(StringBuilder::new()), Int64Builder::new());
            for (_, rows) in index.values(NAME).into_iter().flat_map(|names| names.iter()) {
                for (described, rows) in series.alike(&index, rows) {
                    let [name, kind, unit] = &mut words;
                    name.append_value(described.name);
                    kind.append_value(described.kind.as_str());
                    unit.append_value(described.unit);
                    counts.append_value(rows.count() as i64);
                    index.label_names(&rows).into_iter().for_each(|label| labels.values().append_value(label));
                    labels.append(true);
                }
            }
            let [name, kind, unit] = words.map(|mut word| Arc::new(word.finish()) as ArrayRef);
            let columns = vec![name, kind, unit, Arc::new(labels.finish()) as ArrayRef, Arc::new(counts.finish())];
            RecordBatch::try_new(schema.clone(), columns)
        }
    };
    SystemTable { name: "metrics", schema, rows: Arc::new(rows) }
}

/// The table `labels`: each value of each label, and how many series have it. A condition that names a label reads no other.
#[derive(Debug)]
pub struct Labels {
    series: Known,
    schema: SchemaRef,
}

impl Labels {
    pub const TABLE: &'static str = "labels";

    pub fn new(series: Known) -> Labels {
        let schema = Arc::new(Schema::new(vec![
            Field::new("label", DataType::Utf8, false),
            Field::new("value", DataType::Utf8, false),
            Field::new("series", DataType::Int64, false),
        ]));
        Labels { series, schema }
    }

    fn rows(&self, wanted: Option<&str>) -> Result<RecordBatch> {
        let index = self.series.read();
        let (mut labels, mut values, mut counts) = (StringBuilder::new(), StringBuilder::new(), Int64Builder::new());
        for (label, having) in index.labels() {
            if label == NAME || wanted.is_some_and(|wanted| wanted != label) {
                continue;
            }
            for (value, rows) in having.iter() {
                let seen = rows.partition_point(|&row| (row as usize) < self.series.len());
                if seen > 0 {
                    labels.append_value(label);
                    values.append_value(value);
                    counts.append_value(seen as i64);
                }
            }
        }
        let columns: Vec<ArrayRef> =
            vec![Arc::new(labels.finish()), Arc::new(values.finish()), Arc::new(counts.finish())];
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

#[async_trait]
impl TableProvider for Labels {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

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
        scan(state, self.rows(filters.iter().find_map(label_named))?, projection, limit).await
    }
}

/// Returns the label that a condition asks for.
fn label_named(filter: &Expr) -> Option<&str> {
    let Expr::BinaryExpr(binary) = filter else { return None };
    let is_label = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == "label");
    match (&*binary.left, &*binary.right) {
        (column, value) | (value, column) if binary.op == Operator::Eq && is_label(column) => text(value),
        _ => None,
    }
}

impl Known {
    /// Returns those of these series that the query sees, apart by kind and unit, each time with one of them.
    fn alike<'a>(&self, index: &'a Index, rows: &[u32]) -> Vec<(Series<'a>, Rows)> {
        let mut alike: Vec<(Series<'a>, Rows)> = Vec::new();
        for &row in rows.iter().filter(|&&row| (row as usize) < self.len()) {
            let Some(series) = index.get(row) else { continue };
            let same = alike.iter_mut().find(|(one, _)| (one.kind, one.unit) == (series.kind, series.unit));
            match same {
                Some((_, rows)) => rows.extend(&[row]),
                None => {
                    let mut only = Rows::none(self.len());
                    only.extend(&[row]);
                    alike.push((series, only));
                }
            }
        }
        alike
    }
}
