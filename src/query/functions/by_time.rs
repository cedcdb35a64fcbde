//! `first(value, ts)` and `last(value, ts)`, also by the names `first_by_time` and `last_by_time`: the value at the least and at the greatest time of a group.
//!
//! Unlike `first_value(value ORDER BY ts)` they need no sort and do not depend on the order of equal times: of several
//! values at one time the greater wins. NULL and NaN values, and NULL times, are passed over.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use super::args;
use super::one_group::{OneGroup, Sliding};

/// Which end of the group's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    First,
    Last,
}

/// The aggregate. Takes numbers (as `Float64`) and strings; its state is the value and its time in microseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ByTime {
    end: End,
    aliases: [String; 1],
    signature: Signature,
}

impl ByTime {
    pub fn new(end: End) -> Self {
        let alias = match end {
            End::First => "first_by_time",
            End::Last => "last_by_time",
        };
        ByTime { end, aliases: [alias.to_owned()], signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for ByTime {
    fn name(&self) -> &str {
        match self.end {
            End::First => "first",
            End::Last => "last",
        }
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match given {
            [value, ts] => {
                let value = match value {
                    DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
                    DataType::Dictionary(_, of) if of.is_string() => DataType::Utf8,
                    _ => args::number(self.name(), "value", value)?,
                };
                Ok(vec![value, args::time(self.name(), ts)?])
            }
            _ => plan_err!("expected {}(value, ts), got {} arguments", self.name(), given.len()),
        }
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        match given.first() {
            Some(value) => Ok(value.clone()),
            None => plan_err!("expected {}(value, ts), got no argument", self.name()),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let value = args.return_field.data_type().clone();
        Ok(vec![
            Arc::new(Field::new(format_state_name(args.name, "value"), value, true)),
            Arc::new(Field::new(format_state_name(args.name, "ts"), DataType::Int64, true)),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        args::no_distinct(self.name(), &args)?;
        Ok(match args.return_type() {
            DataType::Utf8 => Box::new(OneGroup::new(Points::<Box<str>>::new(self.end))),
            _ => Box::new(OneGroup::new(Points::<f64>::new(self.end))),
        })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        args::no_distinct(self.name(), &args)?;
        Ok(match args.return_type() {
            DataType::Utf8 => Box::new(Sliding::new(Points::<Box<str>>::new(self.end))),
            _ => Box::new(Sliding::new(Points::<f64>::new(self.end))),
        })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(match args.return_type() {
            DataType::Utf8 => Box::new(Points::<Box<str>>::new(self.end)),
            _ => Box::new(Points::<f64>::new(self.end)),
        })
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// A type of value that can be held for a group.
trait Held: Debug + Clone + Send + Sync + Sized + 'static {
    type Column: Array + 'static;
    /// A view of the value inside its column, so that a string is copied only where it wins.
    type Seen<'a>: Copy;

    fn see(column: &Self::Column, row: usize) -> Option<Self::Seen<'_>>;
    fn hold(seen: Self::Seen<'_>) -> Self;
    fn is_below(&self, seen: Self::Seen<'_>) -> bool;
    fn column_of(values: Vec<Option<Self>>) -> ArrayRef;
    fn heap_bytes(&self) -> usize;
}

impl Held for f64 {
    type Column = Float64Array;
    type Seen<'a> = f64;

    fn see(column: &Float64Array, row: usize) -> Option<f64> {
        Some(column.value(row)).filter(|value| !value.is_nan())
    }

    fn hold(seen: f64) -> Self {
        seen
    }

    fn is_below(&self, seen: f64) -> bool {
        self.total_cmp(&seen).is_lt()
    }

    fn column_of(values: Vec<Option<Self>>) -> ArrayRef {
        Arc::new(Float64Array::from(values))
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Held for Box<str> {
    type Column = StringArray;
    type Seen<'a> = &'a str;

    fn see(column: &StringArray, row: usize) -> Option<&str> {
        Some(column.value(row))
    }

    fn hold(seen: &str) -> Self {
        seen.into()
    }

    fn is_below(&self, seen: &str) -> bool {
        **self < *seen
    }

    fn column_of(values: Vec<Option<Self>>) -> ArrayRef {
        Arc::new(values.iter().map(Option::as_deref).collect::<StringArray>())
    }

    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

/// The winning point of every group.
#[derive(Debug)]
struct Points<T> {
    points: Vec<Option<(i64, T)>>,
    heap_bytes: usize,
    end: End,
}

impl<T: Held> Points<T> {
    fn new(end: End) -> Self {
        Points { points: Vec::new(), heap_bytes: 0, end }
    }

    fn offer(&mut self, group: usize, ts: i64, seen: T::Seen<'_>) -> Result<()> {
        let groups = self.points.len();
        let Some(point) = self.points.get_mut(group) else {
            return internal_err!("expected a group below {groups}, got {group}");
        };
        let wins = match point {
            None => true,
            Some((at, held)) if *at == ts => held.is_below(seen),
            Some((at, _)) => match self.end {
                End::First => ts < *at,
                End::Last => ts > *at,
            },
        };
        if wins {
            let new = T::hold(seen);
            self.heap_bytes += new.heap_bytes();
            if let Some((_, old)) = point.replace((ts, new)) {
                self.heap_bytes -= old.heap_bytes();
            }
        }
        Ok(())
    }

    fn take(&mut self, emit_to: EmitTo) -> (Vec<Option<T>>, Vec<Option<i64>>) {
        let taken = emit_to.take_needed(&mut self.points);
        self.heap_bytes -= taken.iter().flatten().map(|(_, held)| held.heap_bytes()).sum::<usize>();
        taken.into_iter().map(|point| point.map_or((None, None), |(ts, value)| (Some(value), Some(ts)))).unzip()
    }
}

impl<T: Held> GroupsAccumulator for Points<T> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        self.points.resize(self.points.len().max(groups), None);
        let value = args::column::<T::Column>(values, 0)?;
        let ts = args::column::<TimestampMicrosecondArray>(values, 1)?;
        for (row, &group) in group_indices.iter().enumerate() {
            if args::counts(row, filter, &[value, ts])
                && let Some(seen) = T::see(value, row)
            {
                self.offer(group, ts.value(row), seen)?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.points.resize(self.points.len().max(groups), None);
        let (value, ts) = (args::column::<T::Column>(values, 0)?, args::column::<Int64Array>(values, 1)?);
        for (row, &group) in group_indices.iter().enumerate() {
            if args::counts(row, None, &[value, ts])
                && let Some(seen) = T::see(value, row)
            {
                self.offer(group, ts.value(row), seen)?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(T::column_of(self.take(emit_to).0))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (values, times) = self.take(emit_to);
        Ok(vec![T::column_of(values), Arc::new(Int64Array::from(times))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |column| column.len());
        let groups: Vec<usize> = (0..rows).collect();
        let mut each_row = Points::<T>::new(self.end);
        each_row.update_batch(values, &groups, filter, rows)?;
        each_row.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.points.capacity() * size_of::<Option<(i64, T)>>() + self.heap_bytes
    }
}

#[cfg(test)]
mod tests;
