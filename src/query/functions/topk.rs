//! `topk(value, k)`: the `k` greatest values of a group, the greatest first.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Builder, ListBuilder};
use arrow::datatypes::{DataType, Field, Float64Type};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;

use super::args;
use super::summary::{Argument, Definition, Summary};

/// More are better had by ORDER BY.
const K_MAX: f64 = 1_000.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TopK;

/// The greatest values so far, in falling order.
#[derive(Clone, Debug, Default)]
pub struct Greatest(Vec<f64>);

fn list() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)))
}

impl Definition for TopK {
    type Of = Greatest;

    fn name(&self) -> &'static str {
        "topk"
    }

    fn usage(&self) -> &'static str {
        "topk(value, k)"
    }

    fn arguments(&self) -> &'static [Argument] {
        &[Argument::Value, Argument::Number("k")]
    }

    fn settings(&self, args: &AccumulatorArgs<'_>) -> Result<usize> {
        let k = args::literal(self.name(), "k", args, 1)?.unwrap_or(f64::NAN);
        if !((1.0..=K_MAX).contains(&k) && k.fract() == 0.0) {
            return plan_err!("topk expects a whole number from 1 to {K_MAX} as k, got {k}");
        }
        Ok(k as usize)
    }

    fn returns(&self) -> DataType {
        list()
    }

    fn state(&self) -> Vec<(&'static str, DataType)> {
        vec![("greatest", list())]
    }
}

impl Summary for Greatest {
    /// How many to keep.
    type Settings = usize;

    fn empty(_: &usize) -> Self {
        Greatest::default()
    }

    fn add(&mut self, k: &usize, value: f64, _: i64) {
        if self.0.len() >= *k && self.0.last().is_some_and(|least| *least >= value) {
            return;
        }
        self.0.insert(self.0.partition_point(|held| *held >= value), value);
        self.0.truncate(*k);
    }

    fn merge(&mut self, k: &usize, other: &Self) {
        other.0.iter().for_each(|value| self.add(k, *value, 0));
    }

    fn answers(_: &usize, groups: Vec<Self>) -> ArrayRef {
        lists(&groups, |held| !held.is_empty())
    }

    fn columns(groups: Vec<Self>) -> Vec<ArrayRef> {
        vec![lists(&groups, |_| true)]
    }

    fn read(_: &usize, columns: &[ArrayRef], row: usize) -> Result<Self> {
        let [held] = columns else { return internal_err!("expected one column, got {}", columns.len()) };
        let held = held.as_list::<i32>().value(row);
        Ok(Greatest(held.as_primitive::<Float64Type>().values().to_vec()))
    }

    fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<f64>()
    }
}

fn lists(groups: &[Greatest], is_there: impl Fn(&[f64]) -> bool) -> ArrayRef {
    let mut lists = ListBuilder::new(Float64Builder::new());
    for Greatest(held) in groups {
        lists.values().append_slice(held);
        lists.append(is_there(held));
    }
    Arc::new(lists.finish())
}
