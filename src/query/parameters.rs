//! Parameters of statements, `$1`, `$2`, …: of what types they are, and what stands for them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DFSchema, ParamValues, Result, ScalarValue};
use datafusion::logical_expr::{Expr, ExprSchemable as _, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{CastKind, Expr as SqlExpr, Value, ValueWithSpan, visit_expressions_mut};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::error::QueryError;
use super::statement;

/// What whoever asks says of `$1`, `$2`, …: types as SQL writes them, such as `TIMESTAMP WITH TIME ZONE`; none for one that is
/// to follow from the statement.
pub type Types = Vec<Option<&'static str>>;

/// Puts casts around the parameters whose types are said, so that the plan follows from them and not they from the plan.
pub(super) fn cast(within: &mut Statement, types: &Types) -> Result<(), QueryError> {
    let Statement::Statement(within) = within else { return Ok(()) };
    let typed = |expression: &SqlExpr| {
        let SqlExpr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) = expression else { return None };
        let number: usize = name.strip_prefix('$')?.parse().ok()?;
        *types.get(number.checked_sub(1)?)?
    };
    let cast = visit_expressions_mut(within.as_mut(), |expression| {
        let Some(kind) = typed(expression) else { return ControlFlow::Continue(()) };
        let parsed = Parser::new(&GenericDialect {}).try_with_sql(kind).and_then(|mut parser| parser.parse_data_type());
        match parsed {
            Ok(data_type) => {
                let expr = Box::new(expression.clone());
                *expression = SqlExpr::Cast { kind: CastKind::Cast, expr, data_type, array: false, format: None };
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    });
    match cast {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(statement::parse_error(statement::sql_error(error))),
    }
}

/// Takes the columns of a batch of one row for `$1`, `$2`, …
///
/// # Errors
/// A type that no parameter can have.
pub fn of_row(row: &RecordBatch) -> Result<ParamValues, QueryError> {
    let values = row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
    let values = values.collect::<Result<Vec<_>, _>>().map_err(|source| QueryError::Plan { source })?;
    Ok(ParamValues::from(values))
}

/// Returns the parameters of a plan, in their order, as far as it tells of what type they are.
pub(super) fn of_plan(plan: &LogicalPlan) -> Result<Vec<Option<FieldRef>>> {
    // What the planner found out goes before what is found here.
    let mut known: BTreeMap<u32, Option<FieldRef>> = BTreeMap::new();
    for (name, field) in plan.get_parameter_fields()? {
        known.insert(number(&name), field);
    }
    plan.apply_with_subqueries(|node| {
        let mut schema = DFSchema::empty();
        node.inputs().into_iter().for_each(|input| schema.merge(input.schema()));
        for expression in node.expressions() {
            expression.apply(|expression| {
                if let Some((name, kind)) = inferred(expression, &schema)
                    && let Some(unknown @ None) = known.get_mut(&number(name))
                {
                    *unknown = Some(Arc::new(Field::new(name, kind, true)));
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(known.into_values().collect())
}

/// Returns the parameter of an expression that says of what type it is: `CAST($1 AS …)`, `x = ANY($1)`.
fn inferred<'a>(expression: &'a Expr, schema: &DFSchema) -> Option<(&'a str, DataType)> {
    match expression {
        Expr::Cast(cast) => match &*cast.expr {
            Expr::Placeholder(placeholder) => Some((&placeholder.id, cast.field.data_type().clone())),
            _ => None,
        },
        Expr::ScalarFunction(function) if function.name() == "array_has" => match &function.args[..] {
            [Expr::Placeholder(placeholder), item] => {
                let item = item.get_type(schema).ok().filter(|item| !item.is_null())?;
                Some((&placeholder.id, DataType::new_list(item, true)))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Returns the number of a parameter, the last of all where it has none.
fn number(name: &str) -> u32 {
    name.trim_start_matches('$').parse().unwrap_or(u32::MAX)
}
