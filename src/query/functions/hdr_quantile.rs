//! The quantile aggregates over [`Sketch`]: `hdr_quantile(value, q)`, and its two halves `hdr_sketch(value)` and
//! `hdr_merge(sketch)` with the scalar `hdr_quantile_of(sketch, q)`.
//!
//! The halves exist so that a rollup can keep sketches and answer for any longer window and any `q` afterwards, which
//! averaged percentiles cannot; they are also how several quantiles share one pass:
//! `SELECT hdr_quantile_of(s, 0.5), hdr_quantile_of(s, 0.99) FROM (SELECT hdr_sketch(value) AS s FROM metrics)`.
//!
//! Nothing here knows how a sketch works.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, BinaryBuilder, BooleanArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result, internal_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, ColumnarValue, EmitTo, GroupsAccumulator, ScalarFunctionArgs, ScalarUDFImpl,
    Signature, Volatility,
};

use super::args;
use super::one_group::{OneGroup, Sliding};
use super::sketch::Sketch;

/// Which of the three aggregates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// `hdr_quantile(value, q)`: a number.
    Quantile,
    /// `hdr_sketch(value)`: the sketch itself, as `Binary`.
    Sketch,
    /// `hdr_merge(sketch)`: the sketch of everything the given sketches have seen.
    Merge,
}

/// An aggregate over sketches. Its state is one `Binary` column of encoded sketches, NULL for a group without values.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct HdrAggregate {
    call: Call,
    signature: Signature,
}

impl HdrAggregate {
    pub fn new(call: Call) -> Self {
        HdrAggregate { call, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn groups(&self, args: &AccumulatorArgs<'_>) -> Result<SketchGroups> {
        args::no_distinct(self.name(), args)?;
        let q = match self.call {
            Call::Quantile => Some(quantile_in_range(self.name(), args::literal(self.name(), "q", args, 1)?)?),
            Call::Sketch | Call::Merge => None,
        };
        Ok(SketchGroups { sketches: Vec::new(), heap_bytes: 0, input_is_sketch: self.call == Call::Merge, q })
    }
}

impl AggregateUDFImpl for HdrAggregate {
    fn name(&self) -> &str {
        match self.call {
            Call::Quantile => "hdr_quantile",
            Call::Sketch => "hdr_sketch",
            Call::Merge => "hdr_merge",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        match self.call {
            Call::Quantile => {
                args::arity("hdr_quantile(value, q)", given, 2..=2)?;
                ["value", "q"].iter().zip(given).map(|(argument, got)| args::number(name, argument, got)).collect()
            }
            Call::Sketch => {
                args::arity("hdr_sketch(value)", given, 1..=1)?;
                given.iter().map(|got| args::number(name, "value", got)).collect()
            }
            Call::Merge => {
                args::arity("hdr_merge(sketch)", given, 1..=1)?;
                given.iter().map(|got| binary(name, got)).collect()
            }
        }
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(match self.call {
            Call::Quantile => DataType::Float64,
            Call::Sketch | Call::Merge => DataType::Binary,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "sketch"), DataType::Binary, true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneGroup::new(self.groups(&args)?)))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Sliding::new(self.groups(&args)?)))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.groups(&args)?))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// The sketches of all groups of one aggregation.
#[derive(Debug)]
struct SketchGroups {
    sketches: Vec<Sketch>,
    /// The sum of the sketches' own heap bytes, kept up to date so that [`GroupsAccumulator::size`] is O(1).
    heap_bytes: usize,
    input_is_sketch: bool,
    /// What to answer with: a quantile, or the sketch itself.
    q: Option<f64>,
}

impl SketchGroups {
    fn grow(&mut self, groups: usize) {
        // Never shrinks: a batch may know of fewer groups than were seen before.
        if groups > self.sketches.len() {
            self.sketches.resize_with(groups, Sketch::default);
        }
    }

    fn change(&mut self, group: usize, change: impl FnOnce(&mut Sketch)) -> Result<()> {
        let Some(sketch) = self.sketches.get_mut(group) else {
            return internal_err!("expected a group below {}, got {group}", self.sketches.len());
        };
        let before = sketch.heap_bytes();
        change(sketch);
        self.heap_bytes = self.heap_bytes + sketch.heap_bytes() - before;
        Ok(())
    }

    fn take(&mut self, emit_to: EmitTo) -> Vec<Sketch> {
        let taken = emit_to.take_needed(&mut self.sketches);
        self.heap_bytes -= taken.iter().map(Sketch::heap_bytes).sum::<usize>();
        taken
    }

    fn merge_sketches(
        &mut self,
        encoded: &BinaryArray,
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
    ) -> Result<()> {
        for (row, &group) in group_indices.iter().enumerate() {
            if args::counts(row, filter, &[encoded]) {
                let sketch = decode(encoded.value(row))?;
                self.change(group, |into| into.merge(&sketch))?;
            }
        }
        Ok(())
    }
}

impl GroupsAccumulator for SketchGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        self.grow(groups);
        if self.input_is_sketch {
            return self.merge_sketches(args::column(values, 0)?, group_indices, filter);
        }
        let column = args::column::<Float64Array>(values, 0)?;
        for (row, &group) in group_indices.iter().enumerate() {
            if args::counts(row, filter, &[column]) {
                self.change(group, |sketch| sketch.add(column.value(row)))?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.grow(groups);
        self.merge_sketches(args::column(values, 0)?, group_indices, None)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let Some(q) = self.q else { return Ok(encode(&self.take(emit_to))) };
        let quantiles: Float64Array = self.take(emit_to).iter().map(|sketch| sketch.quantile(q)).collect();
        Ok(Arc::new(quantiles))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![encode(&self.take(emit_to))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |column| column.len());
        let groups: Vec<usize> = (0..rows).collect();
        let mut each_row =
            SketchGroups { sketches: Vec::new(), heap_bytes: 0, input_is_sketch: self.input_is_sketch, q: None };
        each_row.update_batch(values, &groups, filter, rows)?;
        each_row.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.sketches.capacity() * size_of::<Sketch>() + self.heap_bytes
    }
}

/// `hdr_quantile_of(sketch, q)`: the quantile of an encoded sketch; NULL for NULL and for an empty one.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct SketchQuantile {
    signature: Signature,
}

impl Default for SketchQuantile {
    fn default() -> Self {
        SketchQuantile { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for SketchQuantile {
    fn name(&self) -> &str {
        "hdr_quantile_of"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        args::arity("hdr_quantile_of(sketch, q)", given, 2..=2)?;
        match given {
            [sketch, q] => Ok(vec![binary(self.name(), sketch)?, args::number(self.name(), "q", q)?]),
            _ => internal_err!("expected two arguments after their number was checked"),
        }
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let sketches = args::column::<BinaryArray>(&columns, 0)?;
        let q = args::column::<Float64Array>(&columns, 1)?;
        let mut quantiles = Float64Array::builder(sketches.len());
        for row in 0..sketches.len() {
            if args::counts(row, None, &[sketches, q]) {
                let q = quantile_in_range(self.name(), Some(q.value(row)))?;
                quantiles.append_option(decode(sketches.value(row))?.quantile(q));
            } else {
                quantiles.append_null();
            }
        }
        Ok(ColumnarValue::Array(Arc::new(quantiles.finish())))
    }
}

/// Returns one quantile of each sketch in a column, as [`SketchQuantile`] does.
///
/// # Errors
/// A column that holds no sketches, a `q` outside [0, 1].
pub fn hdr_quantile_of(sketches: &ArrayRef, q: f64) -> Result<ArrayRef> {
    let columns = [Arc::clone(sketches)];
    let sketches = args::column::<BinaryArray>(&columns, 0)?;
    let q = quantile_in_range("hdr_quantile_of", Some(q))?;
    let each = sketches.iter().map(|sketch| sketch.map(decode).transpose());
    let quantiles = each.map(|sketch| Ok(sketch?.and_then(|sketch| sketch.quantile(q))));
    Ok(Arc::new(quantiles.collect::<Result<Float64Array>>()?))
}

fn binary(function: &str, got: &DataType) -> Result<DataType> {
    match got {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::Null => Ok(DataType::Binary),
        _ => plan_err!("{function} expects a sketch (binary, made by hdr_sketch), got {got}"),
    }
}

fn quantile_in_range(function: &str, q: Option<f64>) -> Result<f64> {
    match q {
        Some(q) if (0.0..=1.0).contains(&q) => Ok(q),
        Some(q) => plan_err!("{function} expects q in [0, 1], got {q}; the 99th percentile is 0.99"),
        None => plan_err!("{function} expects q in [0, 1], got NULL; the 99th percentile is 0.99"),
    }
}

fn encode(sketches: &[Sketch]) -> ArrayRef {
    let mut column = BinaryBuilder::with_capacity(sketches.len(), sketches.len() * 64);
    let mut bytes = Vec::new();
    for sketch in sketches {
        if sketch.is_empty() {
            column.append_null();
        } else {
            bytes.clear();
            sketch.encode(&mut bytes);
            column.append_value(&bytes);
        }
    }
    Arc::new(column.finish())
}

fn decode(bytes: &[u8]) -> Result<Sketch> {
    Sketch::decode(bytes).map_err(|source| DataFusionError::External(Box::new(source)))
}

#[cfg(test)]
mod tests;
