//! The arguments of our aggregates: which types they take, how literals are read, which rows count.
//!
//! Messages name what was expected and what came, since they end up before the person who wrote the SQL.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::physical_expr::PhysicalExpr;

/// Returns the type a value argument is cast to: `Float64` for every kind of number.
pub fn number(function: &str, argument: &str, got: &DataType) -> Result<DataType> {
    if got.is_numeric() || got.is_null() {
        return Ok(DataType::Float64);
    }
    plan_err!("{function} expects a number as {argument}, got {got}; cast it, as in CAST({argument} AS DOUBLE)")
}

/// Returns the type a time argument is cast to: a timestamp of microseconds, in the zone it came in.
pub fn time(function: &str, got: &DataType) -> Result<DataType> {
    match got {
        DataType::Timestamp(_, zone) => Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Date32 | DataType::Date64 | DataType::Null => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        _ => plan_err!("{function} expects a timestamp as ts, got {got}; see to_timestamp"),
    }
}

/// Refuses a wrong number of arguments; `usage` is the whole call, such as `trend(value, ts)`.
pub fn arity(usage: &str, got: &[DataType], allowed: std::ops::RangeInclusive<usize>) -> Result<()> {
    if allowed.contains(&got.len()) {
        return Ok(());
    }
    plan_err!("expected {usage}, got {} arguments", got.len())
}

/// Refuses DISTINCT, which none of our aggregates gives a meaning to.
pub fn no_distinct(function: &str, args: &AccumulatorArgs<'_>) -> Result<()> {
    if args.is_distinct {
        return plan_err!("{function} does not take DISTINCT; aggregate over a SELECT DISTINCT instead");
    }
    Ok(())
}

/// Returns the number written as the argument at `index`; `None` where there is no such argument.
pub fn literal(function: &str, argument: &str, args: &AccumulatorArgs<'_>, index: usize) -> Result<Option<f64>> {
    let Some(expr) = args.exprs.get(index) else { return Ok(None) };
    match scalar(expr) {
        Some(ScalarValue::Float64(Some(number))) => Ok(Some(number)),
        _ => plan_err!("{function} expects a literal number as {argument}, got {expr}"),
    }
}

/// Returns the word written as the argument at `index`; `None` where there is no such argument.
pub fn word(function: &str, argument: &str, args: &AccumulatorArgs<'_>, index: usize) -> Result<Option<String>> {
    let Some(expr) = args.exprs.get(index) else { return Ok(None) };
    match scalar(expr) {
        Some(ScalarValue::Utf8(Some(word))) => Ok(Some(word)),
        _ => plan_err!("{function} expects a literal word as {argument}, got {expr}"),
    }
}

/// Returns the interval written as the argument at `index`, in microseconds, above zero.
pub fn span(function: &str, argument: &str, args: &AccumulatorArgs<'_>, index: usize) -> Result<f64> {
    const MICROS_PER_DAY: f64 = 86_400e6;
    let interval = match args.exprs.get(index).map(scalar) {
        Some(Some(ScalarValue::IntervalMonthDayNano(Some(interval)))) => interval,
        _ => return plan_err!("{function} expects a literal interval as {argument}, as INTERVAL '5 minutes'"),
    };
    let micros = f64::from(interval.days) * MICROS_PER_DAY + interval.nanoseconds as f64 / 1e3;
    if interval.months != 0 || micros <= 0.0 {
        return plan_err!("{function} expects an interval above zero, and without months, as {argument}");
    }
    Ok(micros)
}

fn scalar(expr: &Arc<dyn PhysicalExpr>) -> Option<ScalarValue> {
    let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
    match expr.evaluate(&nothing) {
        Ok(ColumnarValue::Scalar(value)) => Some(value),
        _ => None,
    }
}

/// Returns whether row `row` is to be aggregated: the filter says yes, and no column is null there.
pub fn counts(row: usize, filter: Option<&BooleanArray>, columns: &[&dyn Array]) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
        && columns.iter().all(|column| column.is_valid(row))
}

/// Returns the column at `index` as the array type it was coerced to.
pub fn column<A: Array + 'static>(columns: &[ArrayRef], index: usize) -> Result<&A> {
    columns.get(index).and_then(|column| column.as_any().downcast_ref::<A>()).ok_or_else(|| {
        let got = columns.get(index).map(|column| column.data_type().to_string());
        DataFusionError::Internal(format!("expected {} as column {index}, got {got:?}", std::any::type_name::<A>()))
    })
}
