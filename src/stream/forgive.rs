//! Makes an expression give NULL where it would fail: one odd row must not stop a stream.

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::functions::core::expr_fn::nullif;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, TryCast, lit};

/// Rewrites the casts and divisions of a plan that is not analyzed yet. A division by zero is NULL for floating point
/// too, whose infinities no JSON and few tables can hold.
pub(super) fn forgiving(plan: LogicalPlan) -> Result<LogicalPlan> {
    let forgiven = plan.transform_up(|node| {
        let (schema, names) = (merge_schema(&node.inputs()), NamePreserver::new(&node));
        let node = node.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(|part| forgive(part, &schema))?.update_data(|expr| name.restore(expr)))
        })?;
        node.map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(forgiven.data)
}

fn forgive(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::Cast(cast) => Transformed::yes(Expr::TryCast(TryCast { expr: cast.expr, field: cast.field })),
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Divide | Operator::Modulo), right })
            if !is_other_than_zero(&right) && right.get_type(schema)?.is_numeric() =>
        {
            let right = Box::new(nullif(*right, lit(0i64)));
            Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        other => Transformed::no(other),
    })
}

/// Tells whether an expression is a number, and not zero.
fn is_other_than_zero(expr: &Expr) -> bool {
    let Expr::Literal(value, _) = expr else { return false };
    ScalarValue::new_zero(&value.data_type()).is_ok_and(|zero| !value.is_null() && *value != zero)
}
