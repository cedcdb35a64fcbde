//! Alert rules over the newest windows of the views: the SQL of each, planned once and run when what it reads changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use tracing::warn;

use super::rows;
use crate::decide::alert::Instance;
use crate::decide::rule::Rule;
use crate::decide::template::short_number;
use crate::insight::Row;
use crate::model::time::EventTime;

/// The newest window of a view, as a table whose content changes from tick to tick.
#[derive(Debug)]
struct Newest {
    schema: SchemaRef,
    rows: Mutex<Option<RecordBatch>>,
}

impl Newest {
    fn rows(&self) -> Option<RecordBatch> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl TableProvider for Newest {
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
        filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let table = MemTable::try_new(self.schema.clone(), vec![self.rows().into_iter().collect()])?;
        table.scan(state, projection, filters, limit).await
    }
}

struct Visible {
    table: Arc<Newest>,
    /// How long a window stays the newest: the view's slide.
    slide: Duration,
    window_end: Option<EventTime>,
    /// Grows whenever what is seen changes.
    generation: u64,
}

struct Planned {
    rule: Rule,
    plan: LogicalPlan,
    reads: BTreeSet<String>,
    /// The generations that `instances` were computed from.
    seen: Option<Vec<u64>>,
    instances: Vec<Instance>,
}

/// All rules and what they see.
pub struct Rules {
    context: SessionContext,
    views: BTreeMap<String, Visible>,
    rules: Vec<Planned>,
}

impl Rules {
    /// Plans every rule over the views: name, columns and slide of each.
    pub async fn new(rules: Vec<Rule>, views: Vec<(String, SchemaRef, Duration)>) -> Result<Rules> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        crate::query::register_functions(&context);
        let mut visible = BTreeMap::new();
        for (name, schema, slide) in views {
            let table = Arc::new(Newest { schema, rows: Mutex::new(None) });
            context.register_table(&name, table.clone())?;
            visible.insert(name, Visible { table, slide, window_end: None, generation: 0 });
        }
        let mut planned = Vec::with_capacity(rules.len());
        for rule in rules {
            let plan = plan(&context, &rule).await?;
            let reads = tables_of(&plan)?;
            planned.push(Planned { rule, plan, reads, seen: None, instances: Vec::new() });
        }
        Ok(Rules { context, views: visible, rules: planned })
    }

    pub fn all(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|planned| &planned.rule)
    }

    /// Shows a closed window to the rules, in place of the one before.
    pub fn show(&mut self, view: &str, window_end: EventTime, rows: RecordBatch) {
        if let Some(visible) = self.views.get_mut(view) {
            visible.set(Some(rows), Some(window_end));
        }
    }

    /// Shows the windows that other rules see, as far as the views still have these columns.
    pub fn see_as(&mut self, other: &Rules) {
        for (name, visible) in &mut self.views {
            let Some(theirs) = other.views.get(name) else { continue };
            if visible.table.schema == theirs.table.schema {
                visible.set(theirs.table.rows(), theirs.window_end);
            }
        }
    }

    /// Evaluates every rule at a tick: returns the instances that each rule's query yields.
    pub async fn evaluate(&mut self, at: EventTime) -> Result<Vec<(&Rule, &[Instance])>> {
        for visible in self.views.values_mut() {
            // A view that has nothing newer to show falls silent rather than repeat itself.
            if visible.window_end.is_some_and(|end| end + visible.slide <= at) {
                visible.set(None, None);
            }
        }
        for planned in &mut self.rules {
            let generations = planned.reads.iter().filter_map(|view| self.views.get(view)).map(|v| v.generation);
            let generations: Vec<u64> = generations.collect();
            if planned.seen.as_ref() == Some(&generations) {
                continue;
            }
            match run(&self.context, planned).await {
                Ok(instances) => planned.instances = instances,
                // The rule stays where it was: an error in its arithmetic is no reason to fire, nor to resolve.
                Err(error) => warn!(rule = planned.rule.name, error = format!("{error:#}"), "rule not evaluated"),
            }
            planned.seen = Some(generations);
        }
        Ok(self.rules.iter().map(|planned| (&planned.rule, planned.instances.as_slice())).collect())
    }
}

impl Visible {
    fn set(&mut self, rows: Option<RecordBatch>, window_end: Option<EventTime>) {
        *self.table.rows.lock().unwrap_or_else(PoisonError::into_inner) = rows;
        self.window_end = window_end;
        self.generation += 1;
    }
}

async fn plan(context: &SessionContext, rule: &Rule) -> Result<LogicalPlan> {
    let named = || format!("{}: the query of alert {} cannot be planned", rule.file, rule.name);
    let options = datafusion::execution::context::SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let plan = context.state().create_logical_plan(&rule.sql).await.with_context(named)?;
    options.verify_plan(&plan).with_context(named)?;
    let columns: BTreeSet<&str> = plan.schema().fields().iter().map(|field| field.name().as_str()).collect();
    for (annotation, column) in rule.annotation_columns() {
        anyhow::ensure!(
            column == "value" || columns.contains(column) || rule.labels.contains_key(column),
            "{}: annotation {annotation} names {{{column}}}, which the query does not return (hint: {})",
            rule.file,
            columns.iter().copied().collect::<Vec<_>>().join(", ")
        );
    }
    context.state().optimize(&plan).with_context(named)
}

fn tables_of(plan: &LogicalPlan) -> Result<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            tables.insert(scan.table_name.table().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(tables)
}

async fn run(context: &SessionContext, planned: &Planned) -> Result<Vec<Instance>> {
    let named = || format!("failed to evaluate alert {}", planned.rule.name);
    let state = context.state();
    let physical = state.query_planner().create_physical_plan(&planned.plan, &state).await.with_context(named)?;
    let batches = collect(physical, context.task_ctx()).await.with_context(named)?;
    let rows = batches.iter().flat_map(rows::of_batch);
    Ok(rows.map(instance).collect())
}

/// Text columns are labels, `value` is the value, and every column can be named in annotations.
fn instance(row: Row) -> Instance {
    let numbers = row.values.iter().map(|(name, number)| (name.clone(), short_number(*number)));
    let columns = numbers.chain(row.key.clone()).collect();
    Instance { columns, value: row.values.get("value").copied(), labels: row.key }
}
