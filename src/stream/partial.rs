//! Work shared among instances. Each aggregates the rows of its own partitions; what it gathered is taken out as partial
//! states, and merged by the one instance that closes the windows.
//!
//! Who gathers tells what is late by the partition of a row alone: by how far that partition has promised not to fall
//! behind. Who finishes closes a window once every partition has promised to be past it, so that nothing late can reach
//! it, whatever the order in which the instances send.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::error::{DataFusionError, Result};

use super::aggregation::Aggregation;
use super::plan::Origin;
use super::view::Kind;
use super::{Engine, Source, StreamError};
use crate::model::time::EventTime;

/// What one aggregation has gathered: a row per group and pane, or per part of a session.
#[derive(Clone, Debug)]
pub struct Increment {
    /// Which aggregation, by what it computes: the same in every process.
    pub pass: String,
    /// Nothing in it is of this time or later.
    pub before: EventTime,
    /// The columns `from` and `to`, microseconds; those of the key; those of the aggregates' states.
    pub rows: RecordBatch,
}

/// What became of an increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It was taken in, but for the groups whose every window is closed.
    Taken { closed: usize },
    /// No view here wants it.
    Unwanted,
}

/// Partial states with what they are of.
pub(super) struct Partial {
    /// Start and end of the pane; of parts of sessions, the times of the first and the last row.
    pub bounds: [Vec<i64>; 2],
    pub keys: Vec<ArrayRef>,
    /// Of each aggregate, the columns of its state.
    pub states: Vec<Vec<ArrayRef>>,
}

impl Partial {
    fn into_rows(self) -> Result<RecordBatch> {
        let bounds = self.bounds.into_iter().map(|times| Arc::new(Int64Array::from(times)) as ArrayRef);
        let columns: Vec<ArrayRef> = bounds.chain(self.keys).chain(self.states.into_iter().flatten()).collect();
        let name = |at: usize| match at {
            0 => "from".to_owned(),
            1 => "to".to_owned(),
            _ => format!("c{at}"),
        };
        let fields =
            columns.iter().enumerate().map(|(at, column)| Field::new(name(at), column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    /// Takes rows apart again; `widths` are the numbers of columns of the key and of each aggregate's state.
    fn of_rows(rows: &RecordBatch, (keys, states): (usize, Vec<usize>)) -> Result<Partial> {
        let wanted = 2 + keys + states.iter().sum::<usize>();
        let is_time = |at: usize| *rows.column(at).data_type() == DataType::Int64 && rows.column(at).null_count() == 0;
        if rows.num_columns() != wanted || !is_time(0) || !is_time(1) {
            let found = rows.schema();
            return Err(DataFusionError::Execution(format!("partial states of {wanted} columns, found {found}")));
        }
        let times = |at: usize| rows.column(at).as_primitive::<Int64Type>().values().to_vec();
        let mut rest = rows.columns()[2..].iter().cloned();
        Ok(Partial {
            bounds: [times(0), times(1)],
            keys: rest.by_ref().take(keys).collect(),
            states: states.into_iter().map(|width| rest.by_ref().take(width).collect()).collect(),
        })
    }
}

/// Tells apart the aggregations that compute the same and are kept apart all the same, by their order among the views.
pub(super) fn tell_apart(aggregations: &mut [Aggregation]) {
    let mut known: HashMap<String, usize> = HashMap::new();
    for aggregation in aggregations {
        let before = known.entry(aggregation.identity.clone()).or_default();
        if *before > 0 {
            aggregation.identity = format!("{}-{before}", aggregation.identity);
        }
        *before += 1;
    }
}

impl Engine {
    /// Makes an engine that gathers: it closes no window, and gives what it has aggregated by [`Engine::drain`].
    pub fn gathering(mut self) -> Engine {
        self.aggregations.iter_mut().for_each(|aggregation| aggregation.gather());
        self
    }

    /// Makes an engine that finishes what others gather: it is given increments, and the promises of all partitions
    /// through its clocks.
    pub fn finishing(mut self) -> Engine {
        self.by_promises = true;
        self
    }

    /// Takes the rows pushed next for rows of a partition that has promised not to fall behind a time.
    pub fn stand_at(&mut self, source: Source, promise: Option<EventTime>) {
        for view in &mut self.views {
            let Kind::Windowed { aggregation, .. } = view.kind else { continue };
            if self.aggregations[aggregation].origin == Origin::Source(source) {
                view.stand_at(promise.map_or(i64::MIN, |promise| (promise - view.definition.lateness).as_micros()));
            }
        }
    }

    /// Takes out what was gathered since the last time.
    pub fn drain(&mut self) -> Result<Vec<Increment>, StreamError> {
        let mut increments = Vec::new();
        for aggregation in &mut self.aggregations {
            let failed = self.views[aggregation.members[0]].failure();
            let partial = aggregation.drain(&mut self.views).map_err(&failed)?;
            let Some(last) = partial.bounds[1].iter().max() else { continue };
            let before = EventTime::from_micros(last + 1);
            let rows = partial.into_rows().map_err(&failed)?;
            increments.push(Increment { pass: aggregation.identity.clone(), before, rows });
        }
        Ok(increments)
    }

    /// Merges what was gathered elsewhere.
    ///
    /// # Errors
    /// Rows that are not what [`Engine::drain`] gives.
    pub fn merge(&mut self, pass: &str, rows: &RecordBatch) -> Result<Merged, StreamError> {
        let Some(aggregation) = self.aggregations.iter_mut().find(|one| one.identity == pass) else {
            return Ok(Merged::Unwanted);
        };
        let failed = self.views[aggregation.members[0]].failure();
        let partial = aggregation.widths().and_then(|widths| Partial::of_rows(rows, widths)).map_err(&failed)?;
        let closed = aggregation.merge(partial, &mut self.views).map_err(&failed)?;
        Ok(Merged::Taken { closed })
    }

    /// Returns a time that nothing before is needed of to go on, from increments, after the windows that each view has
    /// `stored`; `EventTime::MIN` where a view needs all there is.
    pub fn bears_from(&self, stored: impl Fn(&str) -> EventTime) -> EventTime {
        let reads_source = |kind: &Kind| match kind {
            Kind::Windowed { aggregation, .. } => {
                matches!(self.aggregations[*aggregation].origin, Origin::Source(_))
            }
            Kind::PerWindow { .. } => false,
        };
        let views = self.views.iter().filter(|view| reads_source(&view.kind));
        views.map(|view| view.bears_from(stored(&view.definition.name))).min().unwrap_or(EventTime::MAX)
    }
}
