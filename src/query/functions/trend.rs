//! `trend(value, ts)` and `trend_direction(value, ts [, threshold])`: the least-squares line through a group's points.
//!
//! One state serves both. Numerically stable: running means and centred co-moments (Welford, 1962), merged by the
//! formula of Chan, Golub and LeVeque (1979); never a sum of squares of raw times. Times are held as seconds after the
//! group's least time, which keeps microseconds exact where seconds since 1970 would not.
//!
//! Reads no clock and no configuration.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringBuilder, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use super::args;
use super::one_group::{OneGroup, Sliding};

/// Relative change over the group's span of time below which it counts as stable, where the query names none.
pub const THRESHOLD_DEFAULT: f64 = 0.05;

const SECONDS_PER_MICRO: f64 = 1e-6;

/// What the points of a group amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    count: u64,
    /// Least and greatest time, microseconds since the epoch.
    ts_min: i64,
    ts_max: i64,
    /// Mean of the times, seconds after `ts_min`.
    mean_t: f64,
    mean_v: f64,
    /// Sum of squared deviations of the times, s².
    m_tt: f64,
    /// Sum of the products of both deviations.
    m_tv: f64,
}

impl Line {
    /// Adds a point. A value that is not finite is no measurement and is left out.
    pub fn add(&mut self, value: f64, ts: i64) {
        if value.is_finite() {
            self.merge(&Line { count: 1, ts_min: ts, ts_max: ts, mean_v: value, ..Line::default() });
        }
    }

    /// Adds all points of another line.
    pub fn merge(&mut self, other: &Line) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let ts_min = self.ts_min.min(other.ts_min);
        let mean_t = self.mean_t + seconds_between(ts_min, self.ts_min);
        let their_mean_t = other.mean_t + seconds_between(ts_min, other.ts_min);
        let (n, m) = (self.count as f64, other.count as f64);
        let (delta_t, delta_v) = (their_mean_t - mean_t, other.mean_v - self.mean_v);
        let share = m / (n + m);
        *self = Line {
            count: self.count.saturating_add(other.count),
            ts_min,
            ts_max: self.ts_max.max(other.ts_max),
            mean_t: mean_t + delta_t * share,
            mean_v: self.mean_v + delta_v * share,
            m_tt: self.m_tt + other.m_tt + delta_t * delta_t * n * share,
            m_tv: self.m_tv + other.m_tv + delta_t * delta_v * n * share,
        };
    }

    /// Returns the slope in units of the value per second; `None` with fewer than two distinct times.
    pub fn slope(&self) -> Option<f64> {
        (self.ts_max > self.ts_min && self.m_tt > 0.0).then(|| self.m_tv / self.m_tt)
    }

    /// Returns where a quantity is going of which less is better: the rise of the line over the group's span of time,
    /// over the magnitude of the mean, is `improving` below `-threshold`, `degrading` above it, else `stable`.
    /// `None` with fewer than two distinct times.
    pub fn direction(&self, threshold: f64) -> Option<&'static str> {
        let rise = self.slope()? * seconds_between(self.ts_min, self.ts_max);
        // Compared as a product, so that a mean of zero needs no case of its own.
        let bound = threshold * self.mean_v.abs();
        Some(if rise > bound {
            "degrading"
        } else if rise < -bound {
            "improving"
        } else {
            "stable"
        })
    }
}

/// Which of the two aggregates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// `trend(value, ts)`: slope, units per second.
    Slope,
    /// `trend_direction(value, ts [, threshold])`: `improving`, `stable` or `degrading`, less being better.
    Direction,
}

/// An aggregate over the least-squares line of a group. Its state is the seven numbers of [`Line`].
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Trend {
    call: Call,
    signature: Signature,
}

impl Trend {
    pub fn new(call: Call) -> Self {
        Trend { call, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn groups(&self, args: &AccumulatorArgs<'_>) -> Result<LineGroups> {
        args::no_distinct(self.name(), args)?;
        let threshold = match self.call {
            Call::Slope => None,
            Call::Direction => {
                let threshold = args::literal(self.name(), "threshold", args, 2)?.unwrap_or(THRESHOLD_DEFAULT);
                if !(threshold.is_finite() && threshold >= 0.0) {
                    return plan_err!("{} expects a threshold of at least 0, got {threshold}", self.name());
                }
                Some(threshold)
            }
        };
        Ok(LineGroups { lines: Vec::new(), threshold })
    }
}

impl AggregateUDFImpl for Trend {
    fn name(&self) -> &str {
        match self.call {
            Call::Slope => "trend",
            Call::Direction => "trend_direction",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match self.call {
            Call::Slope => args::arity("trend(value, ts)", given, 2..=2)?,
            Call::Direction => args::arity("trend_direction(value, ts [, threshold])", given, 2..=3)?,
        }
        let coerce = |(index, got): (usize, &DataType)| match index {
            0 => args::number(self.name(), "value", got),
            1 => args::time(self.name(), got),
            _ => args::number(self.name(), "threshold", got),
        };
        given.iter().enumerate().map(coerce).collect()
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(match self.call {
            Call::Slope => DataType::Float64,
            Call::Direction => DataType::Utf8,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let field = |(name, of): (&str, DataType)| Arc::new(Field::new(format_state_name(args.name, name), of, true));
        Ok([
            ("count", DataType::UInt64),
            ("ts_min", DataType::Int64),
            ("ts_max", DataType::Int64),
            ("mean_t", DataType::Float64),
            ("mean_v", DataType::Float64),
            ("m_tt", DataType::Float64),
            ("m_tv", DataType::Float64),
        ]
        .into_iter()
        .map(field)
        .collect())
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

/// The lines of all groups of one aggregation.
#[derive(Debug)]
struct LineGroups {
    lines: Vec<Line>,
    /// What to answer with: a direction at this threshold, or the slope.
    threshold: Option<f64>,
}

impl LineGroups {
    fn grow(&mut self, groups: usize) {
        if groups > self.lines.len() {
            self.lines.resize(groups, Line::default());
        }
    }

    fn line(&mut self, group: usize) -> Result<&mut Line> {
        let groups = self.lines.len();
        match self.lines.get_mut(group) {
            Some(line) => Ok(line),
            None => internal_err!("expected a group below {groups}, got {group}"),
        }
    }
}

impl GroupsAccumulator for LineGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        self.grow(groups);
        let value = args::column::<Float64Array>(values, 0)?;
        let ts = args::column::<TimestampMicrosecondArray>(values, 1)?;
        for (row, &group) in group_indices.iter().enumerate() {
            if args::counts(row, filter, &[value, ts]) {
                self.line(group)?.add(value.value(row), ts.value(row));
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.grow(groups);
        let count = args::column::<UInt64Array>(values, 0)?;
        let (ts_min, ts_max) = (args::column::<Int64Array>(values, 1)?, args::column::<Int64Array>(values, 2)?);
        let (mean_t, mean_v) = (args::column::<Float64Array>(values, 3)?, args::column::<Float64Array>(values, 4)?);
        let (m_tt, m_tv) = (args::column::<Float64Array>(values, 5)?, args::column::<Float64Array>(values, 6)?);
        for (row, &group) in group_indices.iter().enumerate() {
            if args::counts(row, None, &[count, ts_min, ts_max, mean_t, mean_v, m_tt, m_tv]) {
                self.line(group)?.merge(&Line {
                    count: count.value(row),
                    ts_min: ts_min.value(row),
                    ts_max: ts_max.value(row),
                    mean_t: mean_t.value(row),
                    mean_v: mean_v.value(row),
                    m_tt: m_tt.value(row),
                    m_tv: m_tv.value(row),
                });
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let lines = emit_to.take_needed(&mut self.lines);
        let Some(threshold) = self.threshold else {
            return Ok(Arc::new(lines.iter().map(Line::slope).collect::<Float64Array>()));
        };
        let mut directions = StringBuilder::with_capacity(lines.len(), lines.len() * "improving".len());
        lines.iter().for_each(|line| directions.append_option(line.direction(threshold)));
        Ok(Arc::new(directions.finish()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let lines = emit_to.take_needed(&mut self.lines);
        let floats =
            |of: fn(&Line) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(lines.iter().map(of))) };
        let times = |of: fn(&Line) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(lines.iter().map(of))) };
        Ok(vec![
            Arc::new(UInt64Array::from_iter_values(lines.iter().map(|line| line.count))),
            times(|line| line.ts_min),
            times(|line| line.ts_max),
            floats(|line| line.mean_t),
            floats(|line| line.mean_v),
            floats(|line| line.m_tt),
            floats(|line| line.m_tv),
        ])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |column| column.len());
        let groups: Vec<usize> = (0..rows).collect();
        let mut each_row = LineGroups { lines: Vec::new(), threshold: None };
        each_row.update_batch(values, &groups, filter, rows)?;
        each_row.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.lines.capacity() * size_of::<Line>()
    }
}

/// Exact below 2^53 µs (285 years), for the difference is taken in integers.
fn seconds_between(start: i64, end: i64) -> f64 {
    (i128::from(end) - i128::from(start)) as f64 * SECONDS_PER_MICRO
}

#[cfg(test)]
mod tests;
