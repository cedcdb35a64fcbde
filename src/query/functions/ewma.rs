//! `ewma(value, ts, half_life)`: the exponentially weighted moving average of a group, as of its newest point.
//!
//! A point weighs `2^(-(age / half_life))`, its age being that before the newest point: so points need not come at even
//! steps, and the answer does not depend on the order of rows. Over a window of SQL (`OVER (ORDER BY ts)`) it is the running
//! average.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::function::AccumulatorArgs;

use super::args;
use super::summary::{Argument, Definition, Summary};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ewma;

/// The weighted sum of values and the sum of weights, each as of the newest time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decayed {
    /// Microseconds; says nothing where there is no weight yet.
    newest: i64,
    sum: f64,
    weight: f64,
}

impl Definition for Ewma {
    type Of = Decayed;

    fn name(&self) -> &'static str {
        "ewma"
    }

    fn usage(&self) -> &'static str {
        "ewma(value, ts, half_life)"
    }

    fn arguments(&self) -> &'static [Argument] {
        &[Argument::Value, Argument::Time, Argument::Span("half_life")]
    }

    fn settings(&self, args: &AccumulatorArgs<'_>) -> Result<f64> {
        args::span(self.name(), "half_life", args, 2)
    }

    fn returns(&self) -> DataType {
        DataType::Float64
    }

    fn state(&self) -> Vec<(&'static str, DataType)> {
        vec![("newest", DataType::Int64), ("sum", DataType::Float64), ("weight", DataType::Float64)]
    }
}

impl Summary for Decayed {
    /// The half-life in microseconds.
    type Settings = f64;

    fn empty(_: &f64) -> Self {
        Decayed::default()
    }

    fn add(&mut self, half_life: &f64, value: f64, ts: i64) {
        if value.is_finite() {
            self.merge(half_life, &Decayed { newest: ts, sum: value, weight: 1.0 });
        }
    }

    fn merge(&mut self, half_life: &f64, other: &Self) {
        if other.weight == 0.0 {
            return;
        }
        if self.weight == 0.0 {
            *self = *other;
            return;
        }
        let newest = self.newest.max(other.newest);
        let left = |of: &Decayed| (-(newest.saturating_sub(of.newest) as f64) / half_life).exp2();
        let (ours, theirs) = (left(self), left(other));
        *self = Decayed {
            newest,
            sum: self.sum * ours + other.sum * theirs,
            weight: self.weight * ours + other.weight * theirs,
        };
    }

    fn answers(_: &f64, groups: Vec<Self>) -> ArrayRef {
        let answer = |group: Decayed| (group.weight > 0.0).then(|| group.sum / group.weight);
        Arc::new(groups.into_iter().map(answer).collect::<Float64Array>())
    }

    fn columns(groups: Vec<Self>) -> Vec<ArrayRef> {
        let floats = |of: fn(&Decayed) -> f64| Arc::new(Float64Array::from_iter_values(groups.iter().map(of)));
        let newest = Int64Array::from_iter_values(groups.iter().map(|group| group.newest));
        vec![Arc::new(newest), floats(|group| group.sum), floats(|group| group.weight)]
    }

    fn read(_: &f64, columns: &[ArrayRef], row: usize) -> Result<Self> {
        Ok(Decayed {
            newest: args::column::<Int64Array>(columns, 0)?.value(row),
            sum: args::column::<Float64Array>(columns, 1)?.value(row),
            weight: args::column::<Float64Array>(columns, 2)?.value(row),
        })
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
