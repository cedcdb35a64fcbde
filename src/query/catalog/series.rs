//! The table `series`, answered from the index of labels: a condition on the name or one label is evaluated once for each
//! value there is, and a label that is asked for is read as a column of its own. Reads no file.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, ScalarValue, Statistics, exec_err};
use datafusion::datasource::TableType;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, col};
use datafusion::physical_expr::expressions::{Column as ColumnExpr, Literal};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;

use crate::model::series::Series;
use crate::model::series::index::{Index, NAME, Rows};
use crate::query::labels;

/// The function that a subscript of a map is.
const SUBSCRIPT: &str = "get_field";
/// The column that stands for the subject of a condition while it is evaluated over all that the subject may be.
const SUBJECT: &str = "subject";

/// The index of all series, of which a query sees the first so many.
#[derive(Clone)]
pub struct Known {
    index: Arc<RwLock<Index>>,
    len: usize,
}

impl Known {
    /// Returns those of these rows, which ascend, that the query sees.
    pub fn seen<'a>(&self, rows: &'a [u32]) -> &'a [u32] {
        &rows[..rows.partition_point(|&row| (row as usize) < self.len())]
    }

    pub fn new(index: Arc<RwLock<Index>>) -> Known {
        let len = index.read().unwrap_or_else(PoisonError::into_inner).len();
        Known { index, len }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many series the query sees.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The table.
#[derive(Debug)]
pub struct SeriesTable {
    series: Known,
    /// Of the stored table, whose columns these are.
    schema: SchemaRef,
}

impl SeriesTable {
    pub fn new(series: Known, schema: SchemaRef) -> SeriesTable {
        SeriesTable { series, schema }
    }

    /// Returns the rows for which all of these conditions hold.
    fn select(&self, state: &dyn Session, filters: &[Expr]) -> Result<Rows> {
        let index = self.series.read();
        let mut selected = Rows::all(self.series.len());
        for filter in filters {
            // What has no subject was not taken on, see `supports_filters_pushdown`.
            if let Some((subject, condition)) = subject_of(filter) {
                selected.retain(&subject.select(&index, self.series.len(), state, condition)?);
            }
        }
        Ok(selected)
    }
}

#[async_trait]
impl TableProvider for SeriesTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let taken_on = |filter: &&Expr| match subject_of(filter) {
            Some(_) => TableProviderFilterPushDown::Exact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(taken_on).collect())
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(Statistics::new_unknown(&self.schema).with_num_rows(Precision::Inexact(self.series.len())))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.select(state, filters)?;
        let rows: Arc<[u32]> = rows.iter().take(limit.unwrap_or(usize::MAX)).collect();
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let columns = schema.fields().iter().map(|field| Column::named(field.name())).collect::<Result<_>>()?;
        Ok(Arc::new(SeriesExec::new(self.series.clone(), rows, columns, schema)))
    }
}

/// What a condition is about, where it is about one thing alone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    /// The value of a label, or the name.
    Label(String),
    Id,
}

/// Returns what a condition is about, and the condition with [`SUBJECT`] in its place.
fn subject_of(filter: &Expr) -> Option<(Subject, Expr)> {
    let (mut subjects, mut is_plain) = (Vec::new(), !filter.is_volatile());
    let replaced = filter.clone().transform_down(|expr| {
        let subject = match &expr {
            Expr::ScalarFunction(call) if call.name() == SUBSCRIPT => match call.args.as_slice() {
                [Expr::Column(map), key] if map.name == "labels" => {
                    text(key).map(|label| Subject::Label(label.to_owned()))
                }
                _ => None,
            },
            Expr::Column(column) if column.name == "name" => Some(Subject::Label(NAME.to_owned())),
            Expr::Column(column) if column.name == "series_id" => Some(Subject::Id),
            _ => None,
        };
        is_plain &= match &expr {
            Expr::Column(_) => subject.is_some(),
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::OuterReferenceColumn(..) => false,
            _ => true,
        };
        Ok(match subject {
            Some(subject) => {
                subjects.push(subject);
                Transformed::new(col(SUBJECT), true, TreeNodeRecursion::Jump)
            }
            None => Transformed::no(expr),
        })
    });
    let first = subjects.first()?;
    let is_one = is_plain && subjects.iter().all(|subject| subject == first);
    is_one.then(|| Some((first.clone(), replaced.ok()?.data))).flatten()
}

impl Subject {
    /// Returns the rows of which the condition is true.
    fn select(&self, index: &Index, len: usize, state: &dyn Session, condition: Expr) -> Result<Rows> {
        match self {
            Subject::Id => {
                let series = (0..len as u32).map(|row| index.get(row).map(|series| series.id.0));
                let ids: ArrayRef = Arc::new(Int64Array::from_iter(series));
                let holds = evaluate(state, condition, ids)?;
                let rows: Vec<u32> = (0..len as u32).filter(|&row| is_true(&holds, row as usize)).collect();
                let mut selected = Rows::none(len);
                selected.extend(&rows);
                Ok(selected)
            }
            Subject::Label(label) => {
                let mut selected = Rows::none(len);
                let Some(values) = index.values(label) else {
                    let holds = evaluate(state, condition, Arc::new(StringArray::from(vec![None::<&str>])))?;
                    return Ok(if is_true(&holds, 0) { Rows::all(len) } else { selected });
                };
                if let Some(wanted) = equals(&condition) {
                    wanted.iter().for_each(|value| selected.extend(values.get(value)));
                    return Ok(selected);
                }
                // The last stands for the series that do not have the label.
                let all = values.iter().map(|(value, _)| Some(value)).chain([None]);
                let holds = evaluate(state, condition, Arc::new(all.collect::<StringArray>()))?;
                let holding = values.iter().enumerate().filter(|(at, _)| is_true(&holds, *at));
                holding.for_each(|(_, (_, rows))| selected.extend(rows));
                if !is_true(&holds, values.len()) {
                    return Ok(selected);
                }
                let failing = values.iter().enumerate().filter(|(at, _)| !is_true(&holds, *at));
                let mut excluded = Rows::none(len);
                failing.for_each(|(_, (_, rows))| excluded.extend(rows));
                Ok(excluded.complement())
            }
        }
    }
}

/// Returns the values that a condition allows, where it says no more than that.
fn equals(condition: &Expr) -> Option<Vec<&str>> {
    let is_subject = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == SUBJECT);
    match condition {
        Expr::BinaryExpr(binary) if binary.op == Operator::Eq => match (&*binary.left, &*binary.right) {
            (subject, value) | (value, subject) if is_subject(subject) => Some(vec![text(value)?]),
            _ => None,
        },
        Expr::InList(list) if !list.negated && is_subject(&list.expr) => list.list.iter().map(text).collect(),
        _ => None,
    }
}

/// Returns the text that is written as an expression.
pub(super) fn text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

/// Evaluates a condition over all that its subject may be.
fn evaluate(state: &dyn Session, condition: Expr, subject: ArrayRef) -> Result<BooleanArray> {
    let schema = Arc::new(Schema::new(vec![Field::new(SUBJECT, subject.data_type().clone(), true)]));
    let condition = state.create_physical_expr(condition, &DFSchema::try_from(schema.clone())?)?;
    let batch = RecordBatch::try_new(schema, vec![subject])?;
    let holds = condition.evaluate(&batch)?.into_array(batch.num_rows())?;
    match holds.as_boolean_opt() {
        Some(holds) => Ok(holds.clone()),
        None => exec_err!("expected a condition, got a {}", holds.data_type()),
    }
}

fn is_true(holds: &BooleanArray, at: usize) -> bool {
    holds.is_valid(at) && holds.value(at)
}

/// A column that is read of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Column {
    Id,
    Name,
    Labels,
    Kind,
    Unit,
    FirstSeen,
    /// The value of one label, NULL where a series does not have it.
    Label(String),
}

impl Column {
    fn named(name: &str) -> Result<Column> {
        Ok(match name {
            "series_id" => Column::Id,
            "name" => Column::Name,
            "labels" => Column::Labels,
            "kind" => Column::Kind,
            "unit" => Column::Unit,
            "first_seen" => Column::FirstSeen,
            _ => return exec_err!("expected a column of series, got {name:?}"),
        })
    }

    fn read(&self, index: &Index, rows: &[u32]) -> Result<ArrayRef> {
        let series = || rows.iter().filter_map(|&row| index.get(row));
        let text = |of: for<'a> fn(Series<'a>) -> &'a str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(series().map(of)))
        };
        Ok(match self {
            Column::Id => Arc::new(Int64Array::from_iter_values(series().map(|series| series.id.0))),
            Column::Name => text(|series| series.name),
            Column::Kind => text(|series| series.kind.as_str()),
            Column::Unit => text(|series| series.unit),
            Column::Labels => Arc::new(labels::maps(series())?),
            Column::FirstSeen => {
                let seen = rows.iter().filter_map(|&row| index.first_seen(row)).map(|seen| seen.as_micros());
                Arc::new(TimestampMicrosecondArray::from_iter_values(seen).with_timezone("UTC"))
            }
            Column::Label(label) => {
                let mut values = StringBuilder::new();
                series().for_each(|series| values.append_option(series.label(label)));
                Arc::new(values.finish())
            }
        })
    }
}

/// Reads columns of series.
#[derive(Clone, Debug)]
struct SeriesExec {
    series: Known,
    rows: Arc<[u32]>,
    columns: Vec<Column>,
    properties: Arc<PlanProperties>,
}

impl SeriesExec {
    fn new(series: Known, rows: Arc<[u32]>, columns: Vec<Column>, schema: SchemaRef) -> SeriesExec {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        SeriesExec { series, rows, columns, properties: Arc::new(properties) }
    }

    fn batch(&self, rows: &[u32]) -> Result<RecordBatch> {
        let index = self.series.read();
        let columns = self.columns.iter().map(|column| column.read(&index, rows)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(RecordBatch::try_new_with_options(self.schema(), columns, &options)?)
    }

    /// Returns the column that an expression over ours reads, where it reads one and does no more.
    fn column_of(&self, expr: &Arc<dyn PhysicalExpr>) -> Option<Column> {
        if let Some(column) = expr.downcast_ref::<ColumnExpr>() {
            return self.columns.get(column.index()).cloned();
        }
        let call = expr.downcast_ref::<ScalarFunctionExpr>().filter(|call| call.name() == SUBSCRIPT)?;
        let [map, key] = call.args() else { return None };
        let map = self.columns.get(map.downcast_ref::<ColumnExpr>()?.index())?;
        let key: &ScalarValue = key.downcast_ref::<Literal>()?.value();
        (*map == Column::Labels).then(|| Some(Column::Label(key.try_as_str().flatten()?.to_owned()))).flatten()
    }
}

impl DisplayAs for SeriesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeriesExec: series={}, columns={:?}", self.rows.len(), self.columns)
    }
}

impl ExecutionPlan for SeriesExec {
    fn name(&self) -> &'static str {
        "SeriesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (this, batch_rows) = (self.clone(), context.session_config().batch_size().max(1));
        let starts = (0..self.rows.len()).step_by(batch_rows);
        let batches = starts.map(move |start| {
            let end = this.rows.len().min(start + batch_rows);
            this.batch(this.rows.get(start..end).unwrap_or_default())
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::iter(batches))))
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let unknown = Statistics::new_unknown(&self.schema());
        Ok(Arc::new(unknown.with_num_rows(Precision::Exact(self.rows.len()))))
    }

    /// Takes over a projection that picks columns and labels: the labels that nobody asks for are then not read at all.
    fn try_swapping_with_projection(&self, projection: &ProjectionExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let columns: Option<Vec<Column>> = projection.expr().iter().map(|one| self.column_of(&one.expr)).collect();
        let Some(columns) = columns else { return Ok(None) };
        let picked = SeriesExec::new(self.series.clone(), self.rows.clone(), columns, projection.schema());
        Ok(Some(Arc::new(picked)))
    }
}
