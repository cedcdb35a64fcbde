//! What is evaluated of the input before rows are aggregated, each expression once: per series where it depends on the
//! series alone, else per row.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{concat, prep_null_mask_filter};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use tracing::debug;

/// An expression over the input.
#[derive(Clone)]
pub(super) enum Operand {
    /// Index into [`Operands::statics`].
    PerSeries(usize),
    /// Over [`Operands::row_schema`].
    PerRow(Arc<dyn PhysicalExpr>),
}

impl PartialEq for Operand {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Operand::PerSeries(a), Operand::PerSeries(b)) => a == b,
            (Operand::PerRow(a), Operand::PerRow(b)) => a.eq(b),
            _ => false,
        }
    }
}

/// The expressions over one input, known by what they compute: columns go by number, whatever a query calls them.
pub(super) struct Operands {
    /// The input's columns.
    input: SchemaRef,
    /// Which of them depend on the series alone.
    fixed: BTreeSet<usize>,
    /// Expressions over the fixed columns.
    statics: Vec<Arc<dyn PhysicalExpr>>,
    /// The columns that are needed row by row.
    needed: BTreeSet<usize>,
    /// The statics that are needed row by row, as parts of other expressions.
    woven: BTreeSet<usize>,
}

fn column_name(at: usize) -> String {
    format!("#{at}")
}

fn static_name(at: usize) -> String {
    format!("${at}")
}

impl Operands {
    pub fn new(input: SchemaRef, fixed: BTreeSet<usize>) -> Self {
        Operands { input, fixed, statics: Vec::new(), needed: BTreeSet::new(), woven: BTreeSet::new() }
    }

    /// Takes in an expression over the input's columns. Whatever part of it depends on the series alone is computed once
    /// per series, and stands as a column in what is computed per row.
    pub fn add(&mut self, expr: Arc<dyn PhysicalExpr>) -> Result<Operand> {
        if self.is_fixed(&expr) {
            return Ok(Operand::PerSeries(self.add_static(expr)?));
        }
        let rewritten = expr.transform_down(|node| {
            if self.is_fixed(&node) {
                let at = self.add_static(node)?;
                self.woven.insert(at);
                let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&static_name(at), at));
                return Ok(Transformed::new(column, true, TreeNodeRecursion::Jump));
            }
            Ok(match node.downcast_ref::<Column>() {
                None => Transformed::no(node),
                Some(column) => {
                    let at = column.index();
                    self.needed.insert(at);
                    Transformed::yes(Arc::new(Column::new(&column_name(at), at)))
                }
            })
        })?;
        Ok(Operand::PerRow(rewritten.data))
    }

    fn is_fixed(&self, expr: &Arc<dyn PhysicalExpr>) -> bool {
        let columns = collect_columns(expr);
        !columns.is_empty() && columns.iter().all(|column| self.fixed.contains(&column.index()))
    }

    fn add_static(&mut self, expr: Arc<dyn PhysicalExpr>) -> Result<usize> {
        let numbered = expr.transform_down(|node| {
            Ok(match node.downcast_ref::<Column>() {
                None => Transformed::no(node),
                Some(column) => {
                    let at = column.index();
                    Transformed::new(Arc::new(Column::new(&column_name(at), at)), true, TreeNodeRecursion::Jump)
                }
            })
        })?;
        let expr = numbered.data;
        let same = self.statics.iter().position(|known| known.eq(&expr));
        Ok(same.unwrap_or_else(|| {
            self.statics.push(expr);
            self.statics.len() - 1
        }))
    }

    /// Tells whether two lists, each over operands of its own, compute the same.
    pub fn same(&self, own: &[Operand], others: &Operands, theirs: &[Operand]) -> bool {
        let same = |(a, b): (&Operand, &Operand)| match (a, b) {
            (Operand::PerSeries(a), Operand::PerSeries(b)) => self.statics[*a].eq(&others.statics[*b]),
            // What is woven in goes by number, which is another in other operands.
            (Operand::PerRow(a), Operand::PerRow(b)) => a.eq(b) && self.woven.is_empty() && others.woven.is_empty(),
            _ => false,
        };
        own.len() == theirs.len() && own.iter().zip(theirs).all(same)
    }

    /// Points an expression at the columns it will really be given.
    pub fn place(&self, operand: &Operand) -> Result<Operand> {
        Ok(match operand {
            Operand::PerSeries(at) => Operand::PerSeries(*at),
            Operand::PerRow(expr) => {
                Operand::PerRow(reassign_expr_columns(Arc::clone(expr), self.row_schema()?.as_ref())?)
            }
        })
    }

    /// Returns the expressions over the fixed columns, which are given as they stand in the input, no others between.
    pub fn statics(&self) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        let schema = Schema::new(self.fixed.iter().map(|&at| self.numbered(at)).collect::<Vec<_>>());
        self.statics.iter().map(|expr| reassign_expr_columns(Arc::clone(expr), &schema)).collect()
    }

    /// Returns the numbers of the input's columns that rows must bring.
    pub fn needed(&self) -> &BTreeSet<usize> {
        &self.needed
    }

    /// Returns the numbers of the statics that rows must bring.
    pub fn woven(&self) -> &BTreeSet<usize> {
        &self.woven
    }

    fn numbered(&self, at: usize) -> Field {
        self.input.field(at).clone().with_name(column_name(at)).with_nullable(true)
    }

    /// Returns the columns that row-wise expressions are given: those needed of the input, then those woven in.
    pub fn row_schema(&self) -> Result<SchemaRef> {
        let mut fields: Vec<Field> = self.needed.iter().map(|&at| self.numbered(at)).collect();
        let input = Schema::new((0..self.input.fields().len()).map(|at| self.numbered(at)).collect::<Vec<_>>());
        for &at in &self.woven {
            fields.push(Field::new(static_name(at), self.statics[at].data_type(&input)?, true));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
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

/// Returns where a condition holds; one that is NULL does not.
pub(super) fn holds(condition: &ArrayRef) -> Result<BooleanArray> {
    let mask = datafusion::common::cast::as_boolean_array(condition)?;
    Ok(if mask.null_count() == 0 { mask.clone() } else { prep_null_mask_filter(mask) })
}
