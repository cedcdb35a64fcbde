//! A view's logical plan, cut at its aggregate: what lies below is done row by row, what lies above once per window.

use datafusion::common::{Column, DFSchemaRef, JoinType};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Aggregate, Expr, Join, LogicalPlan};

/// The two sides of the aggregate.
pub(super) struct Cut<'a> {
    /// Nodes above, outermost first.
    pub above: Vec<&'a LogicalPlan>,
    /// Whether they are but filters and projections; none of them was looked at where not.
    pub above_is_plain: bool,
    pub aggregate: &'a Aggregate,
    pub conditions: Vec<&'a Expr>,
    /// Joins with dimension tables, innermost first.
    pub joins: Vec<DimensionJoin<'a>>,
    /// The table whose rows stream in.
    pub table: &'a str,
    /// Its columns, with those of the dimension tables behind.
    pub input: DFSchemaRef,
}

/// A join of the stream with a table of fixed rows.
pub(super) struct DimensionJoin<'a> {
    pub table: &'a str,
    /// Pairs of an expression over the stream and a column of the table.
    pub on: Vec<(&'a Expr, &'a Column)>,
    /// Whether rows without a partner stay.
    pub outer: bool,
    /// The columns of the stream before the join.
    pub left: DFSchemaRef,
}

impl<'a> Cut<'a> {
    pub fn of(plan: &'a LogicalPlan) -> Result<Cut<'a>, String> {
        let mut above = Vec::new();
        let mut above_is_plain = true;
        let mut at = plan;
        let aggregate = loop {
            let inputs = at.inputs();
            match (at, inputs.as_slice()) {
                (LogicalPlan::Aggregate(aggregate), _) => break aggregate,
                (LogicalPlan::TableScan(_), _) => {
                    return Err("the query has no aggregate (hint: add count(*) AS n)".to_owned());
                }
                (_, &[input]) => {
                    if !matches!(at, LogicalPlan::SubqueryAlias(_)) {
                        above_is_plain &= matches!(at, LogicalPlan::Projection(_) | LogicalPlan::Filter(_));
                        above.push(at);
                    }
                    at = input;
                }
                (other, _) => return Err(format!("{} is not supported above a window", head_line(other))),
            }
        };
        let mut cut = Cut {
            above,
            above_is_plain,
            aggregate,
            conditions: Vec::new(),
            joins: Vec::new(),
            table: "",
            input: aggregate.input.schema().clone(),
        };
        cut.descend(&aggregate.input)?;
        Ok(cut)
    }

    /// Follows the stream down to its table.
    fn descend(&mut self, from: &'a LogicalPlan) -> Result<(), String> {
        let mut at = from;
        self.table = loop {
            match at {
                LogicalPlan::Filter(node) => {
                    if !self.joins.is_empty() {
                        return Err("a condition inside a joined subquery is not supported (hint: WHERE)".to_owned());
                    }
                    self.conditions.extend(split_conjunction(&node.predicate));
                    at = &node.input;
                }
                LogicalPlan::SubqueryAlias(node) => at = &node.input,
                LogicalPlan::TableScan(scan) => break scan.table_name.table(),
                LogicalPlan::Join(join) => {
                    self.join(join)?;
                    at = &join.left;
                }
                other => return Err(format!("{} is not supported below the aggregate of a view", head_line(other))),
            }
        };
        self.joins.reverse();
        Ok(())
    }

    fn join(&mut self, join: &'a Join) -> Result<(), String> {
        let outer = match join.join_type {
            JoinType::Inner => false,
            JoinType::Left => true,
            other => return Err(format!("a stream cannot be joined by {other} JOIN (hint: INNER or LEFT)")),
        };
        let table = dimension(&join.right)
            .ok_or("a stream is joined with a dimension table by its name (hint: name the stream first)")?;
        let mut on = Vec::new();
        for (left, right) in &join.on {
            let Expr::Column(right) = right else {
                return Err(format!("expected a column of {table} on one side of the join, got {right}"));
            };
            on.push((left, right));
        }
        match &join.filter {
            None => {}
            Some(filter) if !outer => self.conditions.extend(split_conjunction(filter)),
            Some(filter) => return Err(format!("{filter} is not supported in a LEFT JOIN with a dimension table")),
        }
        if on.is_empty() {
            return Err(format!(
                "the join with {table} has no equality (hint: ON labels['service'] = {table}.service)"
            ));
        }
        self.joins.push(DimensionJoin { table, on, outer, left: join.left.schema().clone() });
        Ok(())
    }
}

fn dimension(plan: &LogicalPlan) -> Option<&str> {
    match plan {
        LogicalPlan::SubqueryAlias(node) => dimension(&node.input),
        LogicalPlan::TableScan(scan) => Some(scan.table_name.table()),
        _ => None,
    }
}

pub(super) fn head_line(plan: &LogicalPlan) -> String {
    plan.display().to_string().chars().take(80).collect()
}
