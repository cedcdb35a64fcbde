//! `locf(value) OVER (…)` and `interpolate(value, ts) OVER (…)`: what stands in the rows without a value, by those around
//! them in the order of the window. For the rows themselves see `generate_series` over times.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, Float64Builder, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{LimitEffect, PartitionEvaluator, Signature, Volatility, WindowUDFImpl};
use datafusion::physical_expr::PhysicalExpr;

use super::args;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// The last value before, of any type.
    Locf,
    /// On the straight line from the value before to the value after; before the first and after the last nothing.
    Interpolate,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Filling {
    call: Call,
    signature: Signature,
}

impl Filling {
    pub fn new(call: Call) -> Self {
        Filling { call, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl WindowUDFImpl for Filling {
    fn name(&self) -> &str {
        match self.call {
            Call::Locf => "locf",
            Call::Interpolate => "interpolate",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match (self.call, given) {
            (Call::Locf, [value]) => Ok(vec![value.clone()]),
            (Call::Interpolate, [value, ts]) => {
                Ok(vec![args::number(self.name(), "value", value)?, args::time(self.name(), ts)?])
            }
            (Call::Locf, _) => args::arity("locf(value) OVER (…)", given, 1..=1).map(|()| Vec::new()),
            (Call::Interpolate, _) => args::arity("interpolate(value, ts) OVER (…)", given, 2..=2).map(|()| Vec::new()),
        }
    }

    fn partition_evaluator(&self, _: PartitionEvaluatorArgs<'_>) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Fill(self.call)))
    }

    fn field(&self, args: WindowUDFFieldArgs<'_>) -> Result<FieldRef> {
        let Some(value) = args.get_input_field(0) else { return internal_err!("expected a value") };
        Ok(Arc::new(Field::new(args.name(), value.data_type().clone(), true)))
    }

    fn limit_effect(&self, _: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        match self.call {
            Call::Locf => LimitEffect::None,
            Call::Interpolate => LimitEffect::Unknown,
        }
    }
}

#[derive(Debug)]
struct Fill(Call);

impl PartitionEvaluator for Fill {
    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        match (self.0, values) {
            (Call::Locf, [value, ..]) => locf(value, rows),
            (Call::Interpolate, _) => interpolate(args::column(values, 0)?, args::column(values, 1)?),
            (Call::Locf, []) => internal_err!("expected a value"),
        }
    }
}

fn locf(value: &ArrayRef, rows: usize) -> Result<ArrayRef> {
    let mut last = None;
    let from = (0..rows).map(|row| {
        if value.is_valid(row) {
            last = Some(row as u64);
        }
        last
    });
    Ok(take(value, &from.collect::<UInt64Array>(), None)?)
}

fn interpolate(value: &Float64Array, ts: &TimestampMicrosecondArray) -> Result<ArrayRef> {
    let mut known = (0..value.len()).filter(|&row| value.is_valid(row) && ts.is_valid(row)).peekable();
    let mut filled = Float64Builder::with_capacity(value.len());
    let mut before: Option<usize> = None;
    for row in 0..value.len() {
        if known.next_if_eq(&row).is_some() {
            before = Some(row);
            filled.append_value(value.value(row));
            continue;
        }
        let between = match (before, known.peek()) {
            (Some(before), Some(&after)) if ts.is_valid(row) => {
                let (start, end) = (ts.value(before), ts.value(after));
                let share = (ts.value(row) - start) as f64 / (end - start) as f64;
                Some(value.value(before) + (value.value(after) - value.value(before)) * share)
            }
            _ => None,
        };
        filled.append_option(between.filter(|value| value.is_finite()));
    }
    Ok(Arc::new(filled.finish()))
}
