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
use crate::model::series::index::{Alike, NAME};

/// Returns rows of a table: all of those that the conditions leave; more where they are no help.
pub type Listing = Arc<dyn Fn(&[Expr]) -> Result<RecordBatch, ArrowError> + Send + Sync>;

/// A table whose rows are listed when it is read.
#[derive(Clone)]
pub struct SystemTable {
    pub name: &'static str,
    pub schema: SchemaRef,
    pub rows: Listing,
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

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = (self.rows)(filters)?;
        MemTable::try_new(rows.schema(), vec![vec![rows]])?.scan(state, projection, &[], None).await
    }
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
    let of_rows = schema.clone();
    let rows = move |_: &[Expr]| {
        let index = series.read();
        let mut words: [StringBuilder; 3] = Default::default();
        let (mut labels, mut counts) = (ListBuilder::new(StringBuilder::new()), Int64Builder::new());
        for (metric, rows) in index.values(NAME).into_iter().flat_map(|names| names.iter()) {
            for Alike { kind, unit: of_kind, label_names, series } in index.alike(series.seen(rows)) {
                let [names, kinds, units] = &mut words;
                names.append_value(metric);
                kinds.append_value(kind.as_str());
                units.append_value(of_kind);
                counts.append_value(series as i64);
                label_names.into_iter().for_each(|label| labels.values().append_value(label));
                labels.append(true);
            }
        }
        let [name, kind, unit] = words.map(|mut word| Arc::new(word.finish()) as ArrayRef);
        let columns = vec![name, kind, unit, Arc::new(labels.finish()) as ArrayRef, Arc::new(counts.finish())];
        RecordBatch::try_new(of_rows.clone(), columns)
    };
    SystemTable { name: "metrics", schema, rows: Arc::new(rows) }
}

/// Returns `labels`: each value of each label, and how many series have it. A condition that names a label reads no other.
pub fn labels(series: Known) -> SystemTable {
    let schema = Arc::new(Schema::new(vec![
        Field::new("label", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, false),
        Field::new("series", DataType::Int64, false),
    ]));
    let of_rows = schema.clone();
    let rows = move |filters: &[Expr]| {
        let wanted = filters.iter().find_map(label_named);
        let index = series.read();
        let (mut labels, mut values, mut counts) = (StringBuilder::new(), StringBuilder::new(), Int64Builder::new());
        for (label, having) in index.labels() {
            if label == NAME || wanted.is_some_and(|wanted| wanted != label) {
                continue;
            }
            for (value, rows) in having.iter() {
                let seen = series.seen(rows).len();
                if seen > 0 {
                    labels.append_value(label);
                    values.append_value(value);
                    counts.append_value(seen as i64);
                }
            }
        }
        let columns: Vec<ArrayRef> =
            vec![Arc::new(labels.finish()), Arc::new(values.finish()), Arc::new(counts.finish())];
        RecordBatch::try_new(of_rows.clone(), columns)
    };
    SystemTable { name: "labels", schema, rows: Arc::new(rows) }
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
