//! `increase`, `rate`, `delta` and `time_weight`: what the points of one series say between the first and the last of them.
//!
//! Rows come in any order and from several places, so the points of a group are kept until it is asked: 16 bytes each,
//! within the memory of the query. Of several points at one time the greatest counts. Nothing is extrapolated to the edges
//! of a window, other than in Prometheus' functions of the same names.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Float64Builder, Int64Builder, ListBuilder};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;

use super::args;
use super::summary::{Argument, Definition, Summary};

const SECONDS_PER_MICRO: f64 = 1e-6;

/// Which of the aggregates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// How much a counter grew; a value below the one before is a reset, after which it counts from zero.
    Increase,
    /// The same in a second.
    Rate,
    /// The last value less the first.
    Delta,
    /// The mean over time.
    TimeWeight,
}

/// What a value stands for until the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// The value stays: last observation carried forward.
    Locf,
    /// A straight line to the next.
    Linear,
}

impl Definition for Call {
    type Of = Points;

    fn name(&self) -> &'static str {
        match self {
            Call::Increase => "increase",
            Call::Rate => "rate",
            Call::Delta => "delta",
            Call::TimeWeight => "time_weight",
        }
    }

    fn usage(&self) -> &'static str {
        match self {
            Call::Increase => "increase(value, ts)",
            Call::Rate => "rate(value, ts)",
            Call::Delta => "delta(value, ts)",
            Call::TimeWeight => "time_weight(value, ts [, 'locf' | 'linear'])",
        }
    }

    fn arguments(&self) -> &'static [Argument] {
        match self {
            Call::TimeWeight => &[Argument::Value, Argument::Time, Argument::Word("method")],
            _ => &[Argument::Value, Argument::Time],
        }
    }

    fn required(&self) -> usize {
        2
    }

    fn settings(&self, args: &AccumulatorArgs<'_>) -> Result<(Call, Between)> {
        let between = match args::word(self.name(), "method", args, 2)?.as_deref() {
            None | Some("locf") => Between::Locf,
            Some("linear") => Between::Linear,
            Some(other) => return plan_err!("{} expects 'locf' or 'linear' as method, got {other:?}", self.name()),
        };
        Ok((*self, between))
    }

    fn returns(&self) -> DataType {
        DataType::Float64
    }

    fn state(&self) -> Vec<(&'static str, DataType)> {
        let list = |of| DataType::List(Arc::new(Field::new_list_field(of, true)));
        vec![("ts", list(DataType::Int64)), ("value", list(DataType::Float64))]
    }
}

/// Points of one group, times in microseconds, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Points(Vec<(i64, f64)>);

impl Summary for Points {
    type Settings = (Call, Between);

    fn empty(_: &Self::Settings) -> Self {
        Points::default()
    }

    fn add(&mut self, _: &Self::Settings, value: f64, ts: i64) {
        self.0.push((ts, value));
    }

    fn merge(&mut self, _: &Self::Settings, other: &Self) {
        self.0.extend(&other.0);
    }

    fn answers((call, between): &Self::Settings, groups: Vec<Self>) -> ArrayRef {
        let answer = |points: Points| {
            let points = points.in_order();
            match call {
                Call::Increase => increase(&points),
                Call::Rate => rate(&points),
                Call::Delta => delta(&points),
                Call::TimeWeight => time_weight(&points, *between),
            }
        };
        Arc::new(groups.into_iter().map(answer).collect::<Float64Array>())
    }

    fn columns(groups: Vec<Self>) -> Vec<ArrayRef> {
        let mut times = ListBuilder::new(Int64Builder::new());
        let mut values = ListBuilder::new(Float64Builder::new());
        for Points(points) in &groups {
            points.iter().for_each(|&(ts, value)| {
                times.values().append_value(ts);
                values.values().append_value(value);
            });
            times.append(true);
            values.append(true);
        }
        vec![Arc::new(times.finish()), Arc::new(values.finish())]
    }

    fn read(_: &Self::Settings, columns: &[ArrayRef], row: usize) -> Result<Self> {
        let [times, values] = columns else { return internal_err!("expected two columns, got {}", columns.len()) };
        let (times, values) = (times.as_list::<i32>().value(row), values.as_list::<i32>().value(row));
        let (times, values) = (times.as_primitive::<Int64Type>(), values.as_primitive::<Float64Type>());
        Ok(Points(times.values().iter().copied().zip(values.values().iter().copied()).collect()))
    }

    fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(i64, f64)>()
    }
}

impl Points {
    /// Returns the points by time, one for each time.
    fn in_order(self) -> Vec<(i64, f64)> {
        let mut points = self.0;
        points.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        points.dedup_by_key(|point| point.0);
        points
    }
}

/// Returns how much a counter grew between its first and last point; `None` with fewer than two.
fn increase(points: &[(i64, f64)]) -> Option<f64> {
    let growth = |pair: &[(i64, f64)]| {
        let (before, now) = (pair[0].1, pair[1].1);
        if now < before { now } else { now - before }
    };
    (points.len() >= 2).then(|| points.windows(2).map(growth).sum())
}

fn rate(points: &[(i64, f64)]) -> Option<f64> {
    Some(increase(points)? / seconds(points)?)
}

fn delta(points: &[(i64, f64)]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    (points.len() >= 2).then_some(last.1 - first.1)
}

/// Returns the mean over time between the first and the last point; of a single point its value.
fn time_weight(points: &[(i64, f64)], between: Between) -> Option<f64> {
    let Some(seconds) = seconds(points) else { return points.first().map(|point| point.1) };
    let area = |pair: &[(i64, f64)]| {
        let height = match between {
            Between::Locf => pair[0].1,
            Between::Linear => (pair[0].1 + pair[1].1) / 2.0,
        };
        height * (pair[1].0 - pair[0].0) as f64 * SECONDS_PER_MICRO
    };
    Some(points.windows(2).map(area).sum::<f64>() / seconds)
}

/// Returns the time from the first to the last point; `None` with fewer than two.
fn seconds(points: &[(i64, f64)]) -> Option<f64> {
    let (first, last) = (points.first()?.0, points.last()?.0);
    (last > first).then(|| last.saturating_sub(first) as f64 * SECONDS_PER_MICRO)
}
