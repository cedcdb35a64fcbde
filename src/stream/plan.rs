//! Planning: from a view's definition, through DataFusion, to what its aggregation takes in, what it aggregates, and
//! what is done with a closed window. Runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::datasource::MemTable;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::{LoweredAggregate, LoweredAggregateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::unparser::expr_to_sql;

use super::cut::{Cut, head_line};
use super::definition::Definition;
use super::dimension::Table;
use super::finish::{Finish, GROUPS, GroupColumn, Output, Step, stored_schema, timestamp};
use super::forgive::forgiving;
use super::per_window::{Slot, WindowQuery};
use super::series::STATIC_COLUMNS;
use super::shape::{Call, Shape};
use super::window::Window;
use super::{Source, StreamError};
use crate::query::labels;

pub(super) const WINDOW_COLUMNS: [&str; 2] = ["window_start", "window_end"];
/// The time of a row of a view, in a view over it.
const VIEW_TIME: &str = "ts";

/// What streams into a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    Source(Source),
    /// A view, by number.
    View(usize),
}

/// A planned view.
#[allow(clippy::large_enum_variant, reason = "made once for a view, and taken apart at once")]
pub(super) enum Planned {
    /// It cuts time itself and aggregates.
    Windowed { shape: Shape, finish: Finish },
    /// It combines the rows that other views have for a window. The views by number, the query, its columns.
    PerWindow { inputs: Vec<usize>, query: WindowQuery, schema: SchemaRef },
}

impl Planned {
    pub fn schema(&self) -> &SchemaRef {
        match self {
            Planned::Windowed { finish, .. } => &finish.schema,
            Planned::PerWindow { schema, .. } => schema,
        }
    }
}

/// What views can read.
pub(super) struct Catalog<'a> {
    pub events: &'a SchemaRef,
    pub dimensions: &'a [Table],
    /// The views planned so far: names and columns.
    pub views: Vec<(Arc<str>, SchemaRef)>,
}

impl Catalog<'_> {
    fn view(&self, name: &str) -> Option<usize> {
        self.views.iter().position(|(view, _)| **view == *name)
    }
}

pub(super) async fn plan(definition: &Definition, catalog: &Catalog<'_>) -> Result<Planned, StreamError> {
    let planner = Planner { definition, catalog, state: state() };
    match &definition.windowed_on {
        Some(on) => planner.windowed(on).await,
        None => planner.per_window().await,
    }
}

fn state() -> SessionState {
    // One partition: a window's rows are few, and nothing needs a runtime then.
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    crate::query::register_functions(&context);
    context.state()
}

fn metrics_schema() -> SchemaRef {
    let columns = [
        ("ts", timestamp()),
        ("name", DataType::Utf8),
        ("labels", labels::map_type()),
        ("value", DataType::Float64),
        ("kind", DataType::Utf8),
        ("unit", DataType::Utf8),
    ];
    with_window(&Schema::new(columns.map(|(name, of)| Field::new(name, of, false)).to_vec()))
}

/// Stands the window's bounds before the columns of a source: grouping by them is grouping by the window.
fn with_window(schema: &Schema) -> SchemaRef {
    let bounds = WINDOW_COLUMNS.map(|name| Arc::new(Field::new(name, timestamp(), false)));
    Arc::new(Schema::new(bounds.into_iter().chain(schema.fields().iter().cloned()).collect::<Vec<_>>()))
}

/// Returns the columns under which a view over a view sees it: its window's start is the time of a row.
fn rows_of_view(schema: &Schema) -> Schema {
    let time = Arc::new(Field::new(VIEW_TIME, timestamp(), false));
    let rest = schema.fields().iter().filter(|field| !WINDOW_COLUMNS.contains(&field.name().as_str())).cloned();
    Schema::new(std::iter::once(time).chain(rest).collect::<Vec<_>>())
}

struct Planner<'a> {
    definition: &'a Definition,
    catalog: &'a Catalog<'a>,
    state: SessionState,
}

impl Planner<'_> {
    fn failed(&self) -> impl Fn(DataFusionError) -> StreamError + use<> {
        let file = self.definition.file.clone();
        move |source| StreamError::Plan { file: file.clone(), source }
    }

    fn unsupported(&self, message: impl Into<String>) -> StreamError {
        StreamError::Unsupported { file: self.definition.file.clone(), message: message.into() }
    }

    fn register(&self, name: &str, table: Arc<dyn datafusion::catalog::TableProvider>) -> Result<(), StreamError> {
        let schema = self.state.schema_for_ref(name).map_err(self.failed())?;
        schema.register_table(name.to_owned(), table).map_err(self.failed())?;
        Ok(())
    }

    async fn logical(&self, rules: Vec<Arc<dyn OptimizerRule + Send + Sync>>) -> Result<LogicalPlan> {
        let dialect = datafusion::config::Dialect::PostgreSQL;
        let statement = self.state.sql_to_statement(&self.definition.query, &dialect)?;
        let logical = forgiving(self.state.statement_to_plan(statement).await?)?;
        let options = Arc::clone(self.state.config_options());
        let logical = self.state.analyzer().execute_and_check(logical, &options, |_, _| {})?;
        Optimizer::with_rules(rules).optimize(logical, &self.state, |_, _| {})
    }

    async fn windowed(self, on: &str) -> Result<Planned, StreamError> {
        for (name, schema) in [("metrics", metrics_schema()), ("events", with_window(self.catalog.events))] {
            self.register(name, Arc::new(EmptyTable::new(schema)))?;
        }
        for (name, schema) in &self.catalog.views {
            self.register(name, Arc::new(EmptyTable::new(with_window(&rows_of_view(schema)))))?;
        }
        for table in self.catalog.dimensions {
            self.register(&table.name, Arc::new(EmptyTable::new(table.rows.schema())))?;
        }
        // Some functions exist only for the simplifier to turn into others; no rule that moves nodes may run, as the cut
        // needs the plan in the shape it was written in.
        let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> =
            vec![Arc::new(SimplifyExpressions::new()), Arc::new(ExtractEquijoinPredicate::new())];
        let logical = self.logical(rules).await.map_err(self.failed())?;
        let cut = Cut::of(&logical).map_err(|message| self.unsupported(message))?;
        let origin = match (cut.table, self.catalog.view(cut.table)) {
            ("metrics", _) => Origin::Source(Source::Metrics),
            ("events", _) => Origin::Source(Source::Events),
            (_, Some(view)) => Origin::View(view),
            (other, None) => {
                return Err(self.unsupported(format!("{other} does not stream (hint: name the stream first)")));
            }
        };
        let over_view = matches!(origin, Origin::View(_));
        if on != "ts" && !(over_view && on == WINDOW_COLUMNS[0]) {
            let time = if over_view { "window_start" } else { "ts, the event time" };
            return Err(self.unsupported(format!("windows over {} are over {time}, got {on}", cut.table)));
        }
        let (groups, keys) = split_groups(&cut.aggregate.group_expr);
        let mut shape = self.shape(origin, &cut, &keys)?;
        let mut outputs = Vec::new();
        for expr in &cut.aggregate.aggr_expr {
            outputs.push(self.output(&mut shape, expr, &cut.input)?);
        }
        let aggregated = Arc::new(cut.aggregate.schema.as_arrow().clone());
        let (steps, rows) = self.steps(&cut, &logical).await?;
        let finish = Finish { groups, outputs, aggregated, steps, schema: stored_schema(&rows) };
        self.check_columns(&finish.schema)?;
        // Its closed windows are rebuilt without the rows that were late for it, though these may not be for others.
        shape.alone = finish.looks_back();
        if finish.looks_back() && matches!(self.definition.window, Window::Session { .. }) {
            return Err(self.unsupported("sessions have no window before (hint: PARTITION BY window_end)"));
        }
        Ok(Planned::Windowed { shape, finish })
    }

    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        let props = self.state.execution_props();
        datafusion::physical_expr::create_physical_expr(expr, schema, props, &Default::default())
    }

    fn shape(&self, origin: Origin, cut: &Cut<'_>, keys: &[&Expr]) -> Result<Shape, StreamError> {
        let failed = self.failed();
        let input = cut.input.as_ref();
        let metrics = origin == Origin::Source(Source::Metrics);
        let arrow = Arc::new(input.as_arrow().clone());
        let source_columns = cut.joins.first().map_or(arrow.fields().len(), |join| join.left.fields().len());
        let fixed: BTreeSet<usize> = (0..arrow.fields().len())
            .filter(|&at| {
                metrics && (at >= source_columns || STATIC_COLUMNS.contains(&arrow.field(at).name().as_str()))
            })
            .collect();
        let mut shape = Shape::new(origin, self.definition.window, arrow, fixed);
        for join in &cut.joins {
            let table = self.catalog.dimensions.iter().find(|table| table.name == join.table);
            let table = table.ok_or_else(|| self.unsupported(format!("{} is no dimension table", join.table)))?;
            let on = join.on.iter().map(|(left, _)| self.physical(left, &join.left)).collect::<Result<Vec<_>>>();
            let columns = join.on.iter().map(|(_, column)| table.rows.schema().index_of(&column.name));
            let columns = columns.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.into()))?;
            let sql: Vec<String> =
                join.on.iter().map(|(left, right)| format!("{} = {}", as_sql(left), right.name)).collect();
            let added = shape.join(on.map_err(&failed)?, table, &columns, join.outer, &sql.join(" AND "));
            let added = added.map_err(&failed)?;
            added.map_err(|message| self.unsupported(message))?;
        }
        for condition in &cut.conditions {
            let (sql, condition) = (as_sql(condition), self.outside_window(condition, input)?);
            shape.condition(condition, &sql).map_err(&failed)?;
        }
        for key in keys {
            let of = key.get_type(input).map_err(&failed)?;
            let (sql, key) = (as_sql(key), self.outside_window(key, input)?);
            shape.key(key, of, &sql).map_err(&failed)?;
        }
        Ok(shape)
    }

    /// Plans an expression that is evaluated before the window of a row is known.
    fn outside_window(&self, expr: &Expr, input: &DFSchema) -> Result<Arc<dyn PhysicalExpr>, StreamError> {
        let physical = self.physical(expr, input).map_err(self.failed())?;
        self.check_outside_window(&physical)?;
        Ok(physical)
    }

    fn check_outside_window(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<(), StreamError> {
        let columns = datafusion::physical_expr::utils::collect_columns(expr);
        match columns.iter().find(|column| column.index() < WINDOW_COLUMNS.len()) {
            None => Ok(()),
            Some(column) => {
                let message = format!("{} can only be a group key or follow the aggregate", column.name());
                Err(self.unsupported(message))
            }
        }
    }

    /// Adds an aggregate to the shape. Quantiles of one column become one sketch that all of them read.
    fn output(&self, shape: &mut Shape, expr: &Expr, input: &DFSchema) -> Result<Output, StreamError> {
        if let Some((sketch, q)) = as_sketch(expr) {
            return Ok(Output::Quantile(self.call(shape, &sketch, input)?, q));
        }
        Ok(Output::Plain(self.call(shape, expr, input)?))
    }

    fn call(&self, shape: &mut Shape, expr: &Expr, input: &DFSchema) -> Result<usize, StreamError> {
        let (failed, context) = (self.failed(), Default::default());
        let words = expr.schema_name().to_string();
        let lowered =
            LoweredAggregateBuilder::new(expr, input, input.as_arrow(), self.state.execution_props(), &context)
                .with_name(words.clone())
                .build();
        let LoweredAggregate { aggregate: function, filter, order_bys } = lowered.map_err(&failed)?;
        if !order_bys.is_empty() {
            let message =
                format!("{expr}: ORDER BY inside an aggregate is not supported (hint: first_by_time, last_by_time)");
            return Err(self.unsupported(message));
        }
        let arguments = function.expressions();
        arguments.iter().chain(&filter).try_for_each(|expr| self.check_outside_window(expr))?;
        shape.call(Call { function, words, sql: as_sql(expr), arguments, filter }).map_err(&failed)
    }

    /// Plans the nodes above the aggregate, innermost first, and returns the columns that come out.
    async fn steps(&self, cut: &Cut<'_>, whole: &LogicalPlan) -> Result<(Vec<Step>, Schema), StreamError> {
        let failed = self.failed();
        let rows = whole.schema().as_arrow().clone();
        if !cut.above_is_plain {
            let query = self.above(cut, whole).await.map_err(&failed)?;
            return Ok((vec![Step::Query(query.map_err(|message| self.unsupported(message))?)], rows));
        }
        let mut steps = Vec::new();
        for node in cut.above.iter().rev() {
            steps.push(match node {
                LogicalPlan::Filter(filter) => {
                    Step::Keep(self.physical(&filter.predicate, filter.input.schema()).map_err(&failed)?)
                }
                LogicalPlan::Projection(projection) => {
                    let schema = projection.input.schema();
                    let exprs = projection.expr.iter().map(|expr| self.physical(expr, schema));
                    let exprs = exprs.collect::<Result<_>>().map_err(&failed)?;
                    Step::Project(exprs, Arc::new(projection.schema.as_arrow().clone()))
                }
                other => return Err(self.unsupported(head_line(other))),
            });
        }
        Ok((steps, rows))
    }

    /// Plans what follows the aggregate as a query of its own, which finds the groups in a table.
    async fn above(&self, cut: &Cut<'_>, whole: &LogicalPlan) -> Result<Result<WindowQuery, String>> {
        let groups = &cut.aggregate.schema;
        // Groups go by number in the table: their names are expressions, and qualified.
        let numbered = |at: usize, field: &Field| Field::new(format!("g{at}"), field.data_type().clone(), true);
        let fields = groups.fields().iter().enumerate().map(|(at, field)| numbered(at, field));
        let slot = Slot::new(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        let provider = datafusion::datasource::provider_as_source(slot.table()?);
        let renamed = groups.iter().enumerate().map(|(at, (qualifier, field))| {
            datafusion::prelude::col(format!("g{at}")).alias_qualified(qualifier.cloned(), field.name())
        });
        let renamed = LogicalPlanBuilder::scan(GROUPS, provider, None)?.project(renamed)?.build()?;
        let above = whole.clone().transform_down(|node| {
            Ok(match node {
                LogicalPlan::Aggregate(_) => Transformed::new(renamed.clone(), true, TreeNodeRecursion::Jump),
                other => Transformed::no(other),
            })
        })?;
        let slots = BTreeMap::from([(GROUPS.to_owned(), slot)]);
        WindowQuery::new(&self.state, above.data, slots).await
    }

    async fn per_window(self) -> Result<Planned, StreamError> {
        let mut slots = BTreeMap::new();
        let mut inputs = Vec::new();
        for (at, (name, schema)) in self.catalog.views.iter().enumerate() {
            if !self.definition.reads.iter().any(|read| **read == **name) {
                continue;
            }
            let slot = Slot::new(schema.clone());
            self.register(name, slot.table().map_err(self.failed())?)?;
            slots.insert(name.to_string(), slot);
            inputs.push(at);
        }
        for table in self.catalog.dimensions {
            let rows = MemTable::try_new(table.rows.schema(), vec![vec![table.rows.clone()]]).map_err(self.failed())?;
            self.register(&table.name, Arc::new(rows))?;
        }
        let logical = self.logical(vec![Arc::new(SimplifyExpressions::new())]).await.map_err(self.failed())?;
        let schema = stored_schema(logical.schema().as_arrow());
        self.check_columns(&schema)?;
        let query = WindowQuery::new(&self.state, logical, slots).await.map_err(self.failed())?;
        let query = query.map_err(|message| self.unsupported(message))?;
        Ok(Planned::PerWindow { inputs, query, schema })
    }

    fn check_columns(&self, schema: &Schema) -> Result<(), StreamError> {
        for column in WINDOW_COLUMNS {
            if schema.field_with_name(column).is_err() {
                return Err(self.unsupported(format!("the query must select {column}")));
            }
        }
        let mut seen = BTreeSet::new();
        for field in schema.fields() {
            if !seen.insert(field.name()) {
                return Err(self.unsupported(format!("column {} appears twice", field.name())));
            }
            let plain = field.name().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !plain {
                let message = format!("column {:?} needs a plain name (hint: add AS name)", field.name());
                return Err(self.unsupported(message));
            }
        }
        Ok(())
    }
}

fn split_groups(exprs: &[Expr]) -> (Vec<GroupColumn>, Vec<&Expr>) {
    let mut keys = Vec::new();
    let mut groups = Vec::new();
    for expr in exprs {
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

/// Returns an expression as a person writes it.
fn as_sql(expr: &Expr) -> String {
    let spelled = expr.clone().unalias().transform_up(|part| {
        Ok(match &part {
            Expr::ScalarFunction(call) if call.name() == "get_field" => match &call.args[..] {
                [of, Expr::Literal(ScalarValue::Utf8(Some(field)), _)] => {
                    Transformed::yes(Expr::Column(Column::new_unqualified(format!("{}['{field}']", as_sql(of)))))
                }
                _ => Transformed::no(part),
            },
            _ => Transformed::no(part),
        })
    });
    let expr = unnormalize_col(spelled.map_or_else(|_| expr.clone(), |spelled| spelled.data));
    let sql = expr_to_sql(&expr).map_or_else(|_| expr.to_string(), |sql| sql.to_string());
    sql.replace('"', "").replace("count(1)", "count(*)")
}

/// Returns the sketch that a quantile can be read from, and which quantile.
fn as_sketch(expr: &Expr) -> Option<(Expr, f64)> {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = expr.clone().unalias() else { return None };
    let ("hdr_quantile", [value, Expr::Literal(ScalarValue::Float64(Some(q)), _)]) = (func.name(), &params.args[..])
    else {
        return None;
    };
    if params.distinct || !(0.0..=1.0).contains(q) {
        return None;
    }
    let sketch = crate::query::functions::udafs().into_iter().find(|function| function.name() == "hdr_sketch")?;
    let mut params = params.clone();
    params.args = vec![value.clone()];
    Some((Expr::AggregateFunction(AggregateFunction { func: sketch, params }), *q))
}
