//! A view's query, planned once by DataFusion and cut at its aggregate: what to do per series, per row, and per closed
//! window. Runs nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, concat, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::DFSchema;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::Result;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, GroupsAccumulator, LogicalPlan};
use datafusion::optimizer::Optimizer;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregate, LoweredAggregateBuilder};
use datafusion::physical_expr::utils::reassign_expr_columns;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use datafusion::prelude::SessionContext;
use tracing::debug;

use super::definition::Definition;
use super::series::{STATIC_COLUMNS, schema as series_schema, text_map};
use super::{Source, StreamError};

const WINDOW_COLUMNS: [&str; 2] = ["window_start", "window_end"];

/// An expression over the input, evaluated once per series where it can be.
#[derive(Clone)]
pub(super) enum Operand {
    /// Index into [`Plan::statics`].
    PerSeries(usize),
    /// Over the columns of [`Plan::row_schema`].
    PerRow(Arc<dyn PhysicalExpr>),
}

pub(super) struct Aggregate {
    function: Arc<AggregateFunctionExpr>,
    pub arguments: Vec<Operand>,
    pub filter: Option<Operand>,
}

impl Aggregate {
    pub fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.function.groups_accumulator_supported() {
            return self.function.create_groups_accumulator();
        }
        let function = Arc::clone(&self.function);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
    }
}

/// A column of the aggregate's output that is not an aggregate.
#[derive(Clone, Copy)]
enum GroupColumn {
    WindowStart,
    WindowEnd,
    Key(usize),
}

/// What is done with a closed window's rows.
enum After {
    /// HAVING.
    Keep(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
}

pub(super) struct Plan {
    pub source: Source,
    /// Expressions over [`series_schema`].
    pub statics: Vec<Arc<dyn PhysicalExpr>>,
    /// Conditions a row must meet, all of them.
    pub conditions: Vec<Operand>,
    pub keys: Vec<Operand>,
    pub key_types: Vec<DataType>,
    pub aggregates: Vec<Aggregate>,
    /// The columns that per-row expressions read.
    pub row_schema: SchemaRef,
    groups: Vec<GroupColumn>,
    aggregated: SchemaRef,
    after: Vec<After>,
    pub output: SchemaRef,
}

/// Plans a view.
pub(super) async fn plan(definition: &Definition, events: &SchemaRef) -> Result<Plan, StreamError> {
    let failed = |source| StreamError::Plan { file: definition.file.clone(), source };
    let ctx = SessionContext::new();
    crate::query::register_functions(&ctx);
    for (name, schema) in [("metrics", metrics_schema()), ("events", with_window(events))] {
        ctx.register_table(name, Arc::new(EmptyTable::new(schema))).map_err(failed)?;
    }
    let state = ctx.state();
    let statement =
        state.sql_to_statement(&definition.query, &datafusion::config::Dialect::PostgreSQL).map_err(failed)?;
    let logical = state.statement_to_plan(statement).await.map_err(failed)?;
    let logical =
        state.analyzer().execute_and_check(logical, &state.config_options().clone(), |_, _| {}).map_err(failed)?;
    // Some functions exist only for the simplifier to turn into others; no other rule may run, as the cut needs the
    // plan in the shape it was written in.
    let simplify = Optimizer::with_rules(vec![Arc::new(SimplifyExpressions::new())]);
    let logical = simplify.optimize(logical, &state, |_, _| {}).map_err(failed)?;
    let cut = Cut::of(&logical).map_err(|message| unsupported(definition, message))?;
    Builder { definition, ctx: &ctx, cut }.build()
}

fn unsupported(definition: &Definition, message: impl Into<String>) -> StreamError {
    StreamError::Unsupported { file: definition.file.clone(), message: message.into() }
}

fn metrics_schema() -> SchemaRef {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    with_window(&Arc::new(Schema::new(vec![
        Field::new("ts", timestamp, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("labels", text_map(), false),
        Field::new("value", DataType::Float64, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("unit", DataType::Utf8, false),
    ])))
}

/// Stands the window's bounds beside the columns of a source: grouping by them is grouping by the window.
fn with_window(schema: &SchemaRef) -> SchemaRef {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let bounds = WINDOW_COLUMNS.map(|name| Arc::new(Field::new(name, timestamp.clone(), false)));
    Arc::new(Schema::new(bounds.into_iter().chain(schema.fields().iter().cloned()).collect::<Vec<_>>()))
}

/// The parts of a logical plan on the two sides of its aggregate.
struct Cut<'a> {
    source: Source,
    /// Nodes above, outermost first.
    above: Vec<&'a LogicalPlan>,
    aggregate: &'a datafusion::logical_expr::Aggregate,
    conditions: Vec<&'a Expr>,
}

impl<'a> Cut<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Cut<'a>, String> {
        let mut above = Vec::new();
        let mut at = plan;
        let aggregate = loop {
            match at {
                LogicalPlan::Aggregate(aggregate) => break aggregate,
                LogicalPlan::Projection(node) => at = step(&mut above, at, &node.input),
                LogicalPlan::Filter(node) => at = step(&mut above, at, &node.input),
                LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
                    return Err(
                        "ORDER BY and LIMIT are not supported in a view yet (hint: sort when querying it)".into()
                    );
                }
                LogicalPlan::TableScan(_) => return Err("the query has no aggregate (hint: add count(*) AS n)".into()),
                other => return Err(format!("{} is not supported in a view", head_line(other))),
            }
        };
        let mut conditions = Vec::new();
        let mut at = aggregate.input.as_ref();
        let table = loop {
            match at {
                LogicalPlan::Filter(node) => {
                    conditions.extend(split_conjunction(&node.predicate));
                    at = &node.input;
                }
                LogicalPlan::SubqueryAlias(node) => at = &node.input,
                LogicalPlan::TableScan(scan) => break scan.table_name.table(),
                other => return Err(format!("{} is not supported below the aggregate of a view", head_line(other))),
            }
        };
        let source = match table {
            "metrics" => Source::Metrics,
            "events" => Source::Events,
            other => return Err(format!("a view reads metrics or events, not {other}")),
        };
        Ok(Cut { source, above, aggregate, conditions })
    }
}

fn step<'a>(above: &mut Vec<&'a LogicalPlan>, at: &'a LogicalPlan, next: &'a LogicalPlan) -> &'a LogicalPlan {
    above.push(at);
    next
}

fn head_line(plan: &LogicalPlan) -> String {
    plan.display().to_string().chars().take(80).collect()
}

struct Builder<'a> {
    definition: &'a Definition,
    ctx: &'a SessionContext,
    cut: Cut<'a>,
}

impl Builder<'_> {
    fn build(self) -> Result<Plan, StreamError> {
        let input = self.cut.aggregate.input.schema().clone();
        let mut operands = Operands::new(self.cut.source, &input);
        let conditions = self.lower_all(&mut operands, self.cut.conditions.iter().copied())?;
        let (groups, key_exprs) = self.split_group_columns();
        let keys = self.lower_all(&mut operands, key_exprs.iter().copied())?;
        let key_types = key_exprs
            .iter()
            .map(|expr| datafusion::logical_expr::ExprSchemable::get_type(*expr, input.as_ref()))
            .collect::<Result<Vec<_>>>()
            .map_err(|source| self.failed(source))?;
        let aggregates = self
            .cut
            .aggregate
            .aggr_expr
            .iter()
            .map(|expr| self.aggregate(&mut operands, expr))
            .collect::<Result<_, _>>()?;
        let aggregated = Arc::new(self.cut.aggregate.schema.as_arrow().clone());
        let (after, output) = self.after()?;
        let row_schema = operands.row_schema();
        let mut plan = Plan {
            source: self.cut.source,
            statics: operands.statics,
            conditions,
            keys,
            key_types,
            aggregates,
            row_schema,
            groups,
            aggregated,
            after,
            output,
        };
        plan.reassign().map_err(|source| self.failed(source))?;
        self.check_output(&plan)?;
        Ok(plan)
    }

    fn failed(&self, source: datafusion::error::DataFusionError) -> StreamError {
        StreamError::Plan { file: self.definition.file.clone(), source }
    }

    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, StreamError> {
        let state = self.ctx.state();
        datafusion::physical_expr::create_physical_expr(expr, schema, state.execution_props(), &Default::default())
            .map_err(|source| self.failed(source))
    }

    fn lower_all<'e>(
        &self,
        operands: &mut Operands,
        exprs: impl Iterator<Item = &'e Expr>,
    ) -> Result<Vec<Operand>, StreamError> {
        exprs
            .map(|expr| {
                let physical = self.physical(expr, self.cut.aggregate.input.schema())?;
                self.operand(operands, physical)
            })
            .collect()
    }

    fn operand(&self, operands: &mut Operands, expr: Arc<dyn PhysicalExpr>) -> Result<Operand, StreamError> {
        operands.add(expr).map_err(|message| unsupported(self.definition, message))
    }

    fn split_group_columns(&self) -> (Vec<GroupColumn>, Vec<&Expr>) {
        let mut keys = Vec::new();
        let mut groups = Vec::new();
        for expr in &self.cut.aggregate.group_expr {
            groups.push(match expr {
                Expr::Column(column) if column.name == WINDOW_COLUMNS[0] => GroupColumn::WindowStart,
                Expr::Column(column) if column.name == WINDOW_COLUMNS[1] => GroupColumn::WindowEnd,
                key => {
                    keys.push(key);
                    GroupColumn::Key(keys.len() - 1)
                }
            });
        }
        (groups, keys)
    }

    fn aggregate(&self, operands: &mut Operands, expr: &Expr) -> Result<Aggregate, StreamError> {
        let input = self.cut.aggregate.input.schema();
        let state = self.ctx.state();
        let context = Default::default();
        let lowered = LoweredAggregateBuilder::new(expr, input, input.as_arrow(), state.execution_props(), &context)
            .with_name(expr.schema_name().to_string())
            .build();
        let LoweredAggregate { aggregate: function, filter, order_bys } =
            lowered.map_err(|source| self.failed(source))?;
        if function.is_distinct() || !order_bys.is_empty() {
            let message = format!("{expr}: DISTINCT and ORDER BY inside an aggregate are not supported in a view");
            return Err(unsupported(self.definition, message));
        }
        let arguments = function.expressions().into_iter().map(|argument| self.operand(operands, argument));
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        let filter = filter.map(|filter| self.operand(operands, filter)).transpose()?;
        Ok(Aggregate { function, arguments, filter })
    }

    /// Lowers the nodes above the aggregate, innermost first.
    fn after(&self) -> Result<(Vec<After>, SchemaRef), StreamError> {
        let mut after = Vec::new();
        for node in self.cut.above.iter().rev() {
            match node {
                LogicalPlan::Filter(filter) => {
                    after.push(After::Keep(self.physical(&filter.predicate, filter.input.schema())?));
                }
                LogicalPlan::Projection(projection) => {
                    let schema = projection.input.schema();
                    let exprs = projection.expr.iter().map(|expr| self.physical(expr, schema));
                    let named = Arc::new(projection.schema.as_arrow().clone());
                    after.push(After::Project(exprs.collect::<Result<_, _>>()?, named));
                }
                other => return Err(unsupported(self.definition, head_line(other))),
            }
        }
        let rows = self.cut.above.first().map_or(&self.cut.aggregate.schema, |node| node.schema());
        let fields: Vec<Field> =
            rows.as_arrow().fields().iter().map(|f| Field::new(f.name(), storable(f.data_type()), true)).collect();
        Ok((after, Arc::new(Schema::new(fields))))
    }

    fn check_output(&self, plan: &Plan) -> Result<(), StreamError> {
        for column in WINDOW_COLUMNS {
            if plan.output.field_with_name(column).is_err() {
                return Err(unsupported(self.definition, format!("the query must select {column}")));
            }
        }
        let mut seen = BTreeSet::new();
        for field in plan.output.fields() {
            if !seen.insert(field.name()) {
                return Err(unsupported(self.definition, format!("column {} appears twice", field.name())));
            }
            let plain = field.name().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !plain {
                let message = format!("column {:?} needs a plain name (hint: add AS name)", field.name());
                return Err(unsupported(self.definition, message));
            }
        }
        Ok(())
    }
}

/// The type a column is kept under: Delta has signed integers, microseconds and plain strings.
fn storable(of: &DataType) -> DataType {
    use DataType::{Boolean, Date32, Float16, Float32, Float64, Int8, Int16, Int32, Int64, Timestamp, Utf8};
    match of {
        Int8 | Int16 | Int32 | Int64 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            Int64
        }
        Float16 | Float32 | Float64 | DataType::Decimal128(..) => Float64,
        Timestamp(..) => Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Boolean => Boolean,
        Date32 => Date32,
        DataType::Map(..) => of.clone(),
        _ => Utf8,
    }
}

/// Sorts expressions into those of the series and those of the row, and notes what columns the latter need.
struct Operands {
    source: Source,
    input: SchemaRef,
    statics: Vec<Arc<dyn PhysicalExpr>>,
    needed: BTreeSet<usize>,
}

impl Operands {
    fn new(source: Source, input: &DFSchema) -> Self {
        let input = Arc::new(input.as_arrow().clone());
        Operands { source, input, statics: Vec::new(), needed: BTreeSet::new() }
    }

    fn add(&mut self, expr: Arc<dyn PhysicalExpr>) -> Result<Operand, String> {
        let columns = datafusion::physical_expr::utils::collect_columns(&expr);
        if let Some(column) = columns.iter().find(|column| WINDOW_COLUMNS.contains(&column.name())) {
            return Err(format!("{} can only be a group key or follow the aggregate", column.name()));
        }
        let fixed = self.source == Source::Metrics
            && !columns.is_empty()
            && columns.iter().all(|column| STATIC_COLUMNS.contains(&column.name()));
        if fixed {
            let same = self.statics.iter().position(|known| known.eq(&expr));
            return Ok(Operand::PerSeries(same.unwrap_or_else(|| {
                self.statics.push(expr);
                self.statics.len() - 1
            })));
        }
        self.needed.extend(columns.iter().map(|column| column.index()));
        Ok(Operand::PerRow(expr))
    }

    fn row_schema(&self) -> SchemaRef {
        let fields: Vec<Field> = self.needed.iter().map(|&at| self.input.field(at).clone()).collect();
        Arc::new(Schema::new(fields))
    }
}

impl Plan {
    /// Points every expression at the schema it will really be given.
    fn reassign(&mut self) -> Result<()> {
        let (rows, series) = (self.row_schema.clone(), series_schema());
        for expr in &mut self.statics {
            *expr = reassign_expr_columns(Arc::clone(expr), &series)?;
        }
        let arguments = self.aggregates.iter_mut().flat_map(|a| a.arguments.iter_mut().chain(a.filter.as_mut()));
        for operand in self.conditions.iter_mut().chain(&mut self.keys).chain(arguments) {
            if let Operand::PerRow(expr) = operand {
                *expr = reassign_expr_columns(Arc::clone(expr), &rows)?;
            }
        }
        Ok(())
    }

    /// Tells whether the group of a row is known from its series.
    pub fn keys_per_series(&self) -> bool {
        self.source == Source::Metrics && self.keys.iter().all(|key| matches!(key, Operand::PerSeries(_)))
    }

    /// Turns the groups of a closed window into the rows of the view.
    pub fn finish(&self, bounds: [ArrayRef; 2], keys: &[ArrayRef], results: &[ArrayRef]) -> Result<RecordBatch> {
        let [start, end] = bounds;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.aggregated.fields().len());
        for group in &self.groups {
            columns.push(match group {
                GroupColumn::WindowStart => Arc::clone(&start),
                GroupColumn::WindowEnd => Arc::clone(&end),
                GroupColumn::Key(at) => Arc::clone(&keys[*at]),
            });
        }
        columns.extend(results.iter().cloned());
        let mut rows = named(&self.aggregated, columns)?;
        for step in &self.after {
            rows = match step {
                After::Keep(condition) => {
                    let keep = evaluate(condition, &rows)?;
                    filter_record_batch(&rows, as_boolean(&keep)?)?
                }
                After::Project(exprs, schema) => {
                    let columns = exprs.iter().map(|expr| evaluate(expr, &rows));
                    named(schema, columns.collect::<Result<_>>()?)?
                }
            };
        }
        let fields = self.output.fields().iter().zip(rows.columns());
        let columns = fields.map(|(field, column)| cast(column, field.data_type()));
        Ok(RecordBatch::try_new(self.output.clone(), columns.collect::<Result<_, _>>()?)?)
    }
}

/// Puts columns under the names of a schema, whatever it says of their nullability.
fn named(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        schema.fields().iter().zip(&columns).map(|(f, c)| Field::new(f.name(), c.data_type().clone(), true)).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Evaluates an expression; where it fails as a whole (a cast of a word that is no number, a division by zero), each row
/// for itself, those that fail being NULL. One odd row must not stop a stream.
pub(super) fn evaluate(expr: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Result<ArrayRef> {
    let whole = |rows: &RecordBatch| expr.evaluate(rows)?.into_array(rows.num_rows());
    let failed = match whole(rows) {
        Ok(values) => return Ok(values),
        Err(error) if rows.num_rows() == 0 => return Err(error),
        Err(error) => error,
    };
    debug!(%expr, error = %failed, "evaluating row by row");
    let null = new_null_array(&expr.data_type(&rows.schema())?, 1);
    let each: Vec<ArrayRef> =
        (0..rows.num_rows()).map(|row| whole(&rows.slice(row, 1)).unwrap_or_else(|_| Arc::clone(&null))).collect();
    let each: Vec<&dyn Array> = each.iter().map(|values| values.as_ref()).collect();
    Ok(concat(&each)?)
}

pub(super) fn as_boolean(array: &ArrayRef) -> Result<&BooleanArray> {
    datafusion::common::cast::as_boolean_array(array)
}
