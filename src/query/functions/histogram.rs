//! `histogram(value, least, greatest, buckets)`: how many values of a group lie in each of so many buckets of one width.
//!
//! The first number counts values below `least`, the last those at or above `greatest`; between them a bucket holds
//! `[start, end)`, as SQL's `width_bucket` has it.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Builder, ListBuilder};
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;

use super::args;
use super::summary::{Argument, Definition, Summary};

/// Above this a histogram is no longer a summary.
const BUCKETS_MAX: f64 = 10_000.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Histogram;

/// The buckets of a call.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    least: f64,
    greatest: f64,
    count: usize,
}

/// How many values lie in each bucket: below, the buckets, at or above. Empty before the first value.
#[derive(Clone, Debug, Default)]
pub struct Counts(Box<[i64]>);

fn list() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)))
}

impl Definition for Histogram {
    type Of = Counts;

    fn name(&self) -> &'static str {
        "histogram"
    }

    fn usage(&self) -> &'static str {
        "histogram(value, least, greatest, buckets)"
    }

    fn arguments(&self) -> &'static [Argument] {
        const ARGUMENTS: &[Argument] =
            &[Argument::Value, Argument::Number("least"), Argument::Number("greatest"), Argument::Number("buckets")];
        ARGUMENTS
    }

    fn settings(&self, args: &AccumulatorArgs<'_>) -> Result<Buckets> {
        let number = |name, at| args::literal(self.name(), name, args, at).map(|number| number.unwrap_or(f64::NAN));
        let (least, greatest, count) = (number("least", 1)?, number("greatest", 2)?, number("buckets", 3)?);
        if !(least.is_finite() && greatest.is_finite() && least < greatest) {
            return plan_err!("histogram expects least below greatest, got {least} and {greatest}");
        }
        if !((1.0..=BUCKETS_MAX).contains(&count) && count.fract() == 0.0) {
            return plan_err!("histogram expects from 1 to {BUCKETS_MAX} buckets, got {count}");
        }
        Ok(Buckets { least, greatest, count: count as usize })
    }

    fn returns(&self) -> DataType {
        list()
    }

    fn state(&self) -> Vec<(&'static str, DataType)> {
        vec![("counts", list())]
    }
}

impl Buckets {
    /// Returns the place of a value among the counts.
    fn place(&self, value: f64) -> usize {
        if value < self.least {
            0
        } else if value >= self.greatest {
            self.count + 1
        } else {
            let share = (value - self.least) / (self.greatest - self.least);
            1 + ((share * self.count as f64) as usize).min(self.count - 1)
        }
    }
}

impl Counts {
    fn at_least(&mut self, len: usize) -> &mut [i64] {
        if self.0.is_empty() {
            self.0 = vec![0; len].into();
        }
        &mut self.0
    }
}

impl Summary for Counts {
    type Settings = Buckets;

    fn empty(_: &Buckets) -> Self {
        Counts::default()
    }

    fn add(&mut self, buckets: &Buckets, value: f64, _: i64) {
        if let Some(count) = self.at_least(buckets.count + 2).get_mut(buckets.place(value)) {
            *count += 1;
        }
    }

    fn merge(&mut self, buckets: &Buckets, other: &Self) {
        if other.0.is_empty() {
            return;
        }
        let ours = self.at_least(buckets.count + 2);
        ours.iter_mut().zip(&other.0).for_each(|(ours, theirs)| *ours += theirs);
    }

    fn answers(_: &Buckets, groups: Vec<Self>) -> ArrayRef {
        let mut lists = ListBuilder::new(Int64Builder::new());
        for Counts(counts) in &groups {
            lists.values().append_slice(counts);
            lists.append(!counts.is_empty());
        }
        Arc::new(lists.finish())
    }

    fn columns(groups: Vec<Self>) -> Vec<ArrayRef> {
        let mut lists = ListBuilder::new(Int64Builder::new());
        for Counts(counts) in &groups {
            lists.values().append_slice(counts);
            lists.append(true);
        }
        vec![Arc::new(lists.finish())]
    }

    fn read(_: &Buckets, columns: &[ArrayRef], row: usize) -> Result<Self> {
        let [counts] = columns else { return internal_err!("expected one column, got {}", columns.len()) };
        let counts = counts.as_list::<i32>().value(row);
        Ok(Counts(counts.as_primitive::<Int64Type>().values().iter().copied().collect()))
    }

    fn heap_bytes(&self) -> usize {
        self.0.len() * size_of::<i64>()
    }
}
