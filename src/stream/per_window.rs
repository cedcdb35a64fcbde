//! Ordinary queries over the rows of one window: what follows a view's aggregate where it is more than filters and
//! projections, and views that only combine others. DataFusion plans them once and runs them at every window.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, collect};

use super::plan::WINDOW_COLUMNS;

/// A table whose rows are changed between runs of a plan that reads it.
pub(super) struct Slot {
    schema: SchemaRef,
    rows: Mutex<Vec<RecordBatch>>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

impl Slot {
    pub fn new(schema: SchemaRef) -> Arc<Slot> {
        Arc::new(Slot { schema, rows: Mutex::default() })
    }

    pub fn table(self: &Arc<Self>) -> Result<Arc<StreamingTable>> {
        let stream: Arc<dyn PartitionStream> = Arc::new(SlotStream(Arc::clone(self)));
        Ok(Arc::new(StreamingTable::try_new(self.schema.clone(), vec![stream])?))
    }

    fn set(&self, rows: Vec<RecordBatch>) {
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }
}

#[derive(Debug)]
struct SlotStream(Arc<Slot>);

impl PartitionStream for SlotStream {
    fn schema(&self) -> &SchemaRef {
        &self.0.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.0.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(
            MemoryStream::try_new(rows, self.0.schema.clone(), None).expect("without a projection nothing can fail"),
        )
    }
}

/// A planned query and the tables it reads.
pub(super) struct WindowQuery {
    plan: Arc<dyn ExecutionPlan>,
    slots: BTreeMap<String, Arc<Slot>>,
    context: Arc<TaskContext>,
    /// Whether it looks at windows before the one it is run for.
    pub looks_back: bool,
}

impl WindowQuery {
    pub async fn new(
        state: &SessionState,
        logical: LogicalPlan,
        slots: BTreeMap<String, Arc<Slot>>,
    ) -> Result<std::result::Result<WindowQuery, String>> {
        let looks_back = looks_back(&logical)?;
        if looks_back && logical.exists(|node| Ok(matches!(node, LogicalPlan::Limit(_))))? {
            let hint = "hint: row_number() OVER (PARTITION BY window_end ORDER BY …) in a subquery";
            return Ok(Err(format!("LIMIT cannot follow a function over earlier windows ({hint})")));
        }
        let plan = state.create_physical_plan(&logical).await?;
        Ok(Ok(WindowQuery { plan, slots, context: state.task_ctx(), looks_back }))
    }

    /// Runs the query over the rows of its tables.
    pub async fn run(&self, tables: impl IntoIterator<Item = (&str, Vec<RecordBatch>)>) -> Result<RecordBatch> {
        for (name, rows) in tables {
            if let Some(slot) = self.slots.get(name) {
                slot.set(rows);
            }
        }
        // Some operators keep what they built of their input; a new run begins without.
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        let schema = plan.schema();
        let batches = collect(plan, Arc::clone(&self.context)).await?;
        self.slots.values().for_each(|slot| slot.set(Vec::new()));
        Ok(concat_batches(&schema, &batches)?)
    }
}

/// Tells whether a window function sees more than the rows of one window of the view.
fn looks_back(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| {
        let LogicalPlan::Window(window) = node else { return Ok(false) };
        let within = |expr: &Expr| match expr.clone().unalias() {
            Expr::WindowFunction(function) => {
                let WindowFunction { params, .. } = *function;
                params.partition_by.iter().any(|by| matches!(by, Expr::Column(c) if WINDOW_COLUMNS.contains(&&*c.name)))
            }
            _ => true,
        };
        Ok(!window.window_expr.iter().all(within))
    })
}
