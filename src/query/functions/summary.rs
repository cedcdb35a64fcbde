//! What aggregates over the values of a group share: the arguments, the state of many groups side by side, and the ways of
//! DataFusion. An aggregate says what one group amounts to ([`Summary`]) and how it is called ([`Definition`]).

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use super::args;
use super::one_group::{OneGroup, Sliding};

/// What the values of one group amount to. Merging must give what adding all values would have, in any order, up to
/// rounding.
pub trait Summary: Debug + Clone + Send + Sync + 'static {
    /// What all groups of one call have in common: its literal arguments.
    type Settings: Debug + Clone + Send + Sync;

    fn empty(settings: &Self::Settings) -> Self;
    /// Adds a value that is not NaN. `ts`: its time in microseconds, zero for an aggregate that takes none.
    fn add(&mut self, settings: &Self::Settings, value: f64, ts: i64);
    fn merge(&mut self, settings: &Self::Settings, other: &Self);
    /// Returns the answers, a row for each group.
    fn answers(settings: &Self::Settings, groups: Vec<Self>) -> ArrayRef;
    /// Returns the state as columns, a row for each group, none of them NULL.
    fn columns(groups: Vec<Self>) -> Vec<ArrayRef>;
    /// Reads back what [`Summary::columns`] wrote.
    fn read(settings: &Self::Settings, columns: &[ArrayRef], row: usize) -> Result<Self>;
    /// Returns the bytes held beyond the size of the type.
    fn heap_bytes(&self) -> usize;
}

/// One argument of an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Argument {
    Value,
    Time,
    /// A literal number of this name.
    Number(&'static str),
    /// A literal word of this name.
    Word(&'static str),
    /// A literal interval of this name.
    Span(&'static str),
}

/// How an aggregate is called, and what it gives.
pub trait Definition: Debug + Clone + PartialEq + Eq + Hash + Send + Sync + 'static {
    type Of: Summary;

    fn name(&self) -> &'static str;
    /// Returns the whole call, as `rate(value, ts)`.
    fn usage(&self) -> &'static str;
    fn arguments(&self) -> &'static [Argument];
    /// Returns how many of the arguments must be there.
    fn required(&self) -> usize {
        self.arguments().len()
    }
    /// Reads the literal arguments.
    fn settings(&self, args: &AccumulatorArgs<'_>) -> Result<<Self::Of as Summary>::Settings>;
    fn returns(&self) -> DataType;
    /// Returns names and types of the columns of the state.
    fn state(&self) -> Vec<(&'static str, DataType)>;
}

/// An aggregate as DataFusion knows it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Aggregate<D> {
    definition: D,
    signature: Signature,
}

impl<D: Definition> Aggregate<D> {
    pub fn new(definition: D) -> Self {
        Aggregate { definition, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn groups(&self, args: &AccumulatorArgs<'_>) -> Result<Groups<D::Of>> {
        args::no_distinct(self.definition.name(), args)?;
        let has_time = self.definition.arguments().contains(&Argument::Time);
        Ok(Groups { settings: self.definition.settings(args)?, groups: Vec::new(), heap_bytes: 0, has_time })
    }
}

impl<D: Definition> AggregateUDFImpl for Aggregate<D> {
    fn name(&self) -> &str {
        self.definition.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let (name, arguments) = (self.definition.name(), self.definition.arguments());
        args::arity(self.definition.usage(), given, self.definition.required()..=arguments.len())?;
        let coerce = |(argument, got): (&Argument, &DataType)| match argument {
            Argument::Value => args::number(name, "value", got),
            Argument::Time => args::time(name, got),
            Argument::Number(argument) => args::number(name, argument, got),
            Argument::Word(argument) if !got.is_string() => plan_err!("{name} expects a word as {argument}, got {got}"),
            Argument::Word(_) => Ok(DataType::Utf8),
            Argument::Span(argument) if !(got.is_string() || matches!(got, DataType::Interval(_))) => {
                plan_err!("{name} expects an interval as {argument}, got {got}")
            }
            Argument::Span(_) => Ok(DataType::Interval(IntervalUnit::MonthDayNano)),
        };
        arguments.iter().zip(given).map(coerce).collect()
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(self.definition.returns())
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let field = |(name, of)| Arc::new(Field::new(format_state_name(args.name, name), of, true));
        Ok(self.definition.state().into_iter().map(field).collect())
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

/// The groups of one aggregation.
#[derive(Debug)]
struct Groups<S: Summary> {
    settings: S::Settings,
    groups: Vec<S>,
    /// Of all groups.
    heap_bytes: usize,
    has_time: bool,
}

impl<S: Summary> Groups<S> {
    fn grow(&mut self, groups: usize) {
        let empty = S::empty(&self.settings);
        let new = groups.saturating_sub(self.groups.len());
        self.heap_bytes += new * empty.heap_bytes();
        self.groups.extend(std::iter::repeat_n(empty, new));
    }

    fn change(&mut self, group: usize, change: impl FnOnce(&mut S, &S::Settings)) -> Result<()> {
        let groups = self.groups.len();
        let Some(summary) = self.groups.get_mut(group) else {
            return internal_err!("expected a group below {groups}, got {group}");
        };
        let before = summary.heap_bytes();
        change(summary, &self.settings);
        self.heap_bytes = self.heap_bytes + summary.heap_bytes() - before;
        Ok(())
    }

    fn take(&mut self, emit_to: EmitTo) -> Vec<S> {
        let taken = emit_to.take_needed(&mut self.groups);
        self.heap_bytes -= taken.iter().map(S::heap_bytes).sum::<usize>();
        taken
    }
}

impl<S: Summary> GroupsAccumulator for Groups<S> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        self.grow(groups);
        let value = args::column::<Float64Array>(values, 0)?;
        let ts = match self.has_time {
            true => Some(args::column::<TimestampMicrosecondArray>(values, 1)?),
            false => None,
        };
        for (row, &group) in group_indices.iter().enumerate() {
            let is_timed = ts.is_none_or(|ts| ts.is_valid(row));
            if is_timed && args::counts(row, filter, &[value]) && !value.value(row).is_nan() {
                let ts = ts.map_or(0, |ts| ts.value(row));
                self.change(group, |summary, settings| summary.add(settings, value.value(row), ts))?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.grow(groups);
        for (row, &group) in group_indices.iter().enumerate() {
            if values.iter().all(|column| column.is_valid(row)) {
                let other = S::read(&self.settings, values, row)?;
                self.change(group, |summary, settings| summary.merge(settings, &other))?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let taken = self.take(emit_to);
        Ok(S::answers(&self.settings, taken))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(S::columns(self.take(emit_to)))
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |column| column.len());
        let groups: Vec<usize> = (0..rows).collect();
        let (settings, has_time) = (self.settings.clone(), self.has_time);
        let mut each_row = Groups::<S> { settings, groups: Vec::new(), heap_bytes: 0, has_time };
        each_row.update_batch(values, &groups, filter, rows)?;
        each_row.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.groups.capacity() * size_of::<S>() + self.heap_bytes
    }
}
