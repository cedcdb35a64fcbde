//! Continuous queries: rows go in with their event time, closed windows come out when the watermark passes them.
//!
//! Deterministic: what comes out depends on the rows, their order and the watermark alone. Never reads a clock, never
//! waits for anything outside, never touches Kafka or the store.

pub mod adopt;
mod aggregation;
pub mod correct;
mod cut;
pub mod definition;
pub mod dimension;
pub mod explain;
mod finish;
mod forgive;
mod intake;
mod keys;
mod operand;
mod pane;
pub mod partial;
mod per_window;
mod plan;
pub mod rebuild;
mod series;
mod sessions;
mod shape;
mod sliding;
#[cfg(test)]
mod tests;
mod view;
pub mod watermark;
pub mod window;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::common::cast::as_timestamp_microsecond_array;
use datafusion::error::DataFusionError;

use crate::model::batch::Samples;
use crate::model::series::Interner;
use crate::model::time::{EventTime, Span};
use aggregation::Aggregation;
use definition::Definition;
use dimension::Table;
use plan::{Catalog, Origin, Planned};
use series::Routes;
use shape::Shape;
pub use view::Counts;
use view::{Input, Kind, View};
use watermark::{Clock, PartitionKey};

/// How many new series are evaluated at a time.
const SERIES_CHUNK: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{file}:{line}: {message}")]
    Syntax { file: String, line: u64, message: String },
    #[error("{file}: {message}")]
    Unsupported { file: String, message: String },
    #[error("{file}: the query cannot be planned")]
    Plan { file: String, source: DataFusionError },
    #[error("{view} is defined in both {first} and {second}")]
    Duplicate { view: String, first: String, second: String },
    #[error("failed to aggregate rows of view {view}")]
    Aggregate { view: String, source: DataFusionError },
    #[error("failed to take in rows")]
    Rows { source: DataFusionError },
    #[error("failed to put series into columns")]
    Series { source: ArrowError },
}

/// Which stream a view reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    Metrics,
    Events,
}

/// The rows of one closed window of one view.
#[derive(Clone, Debug)]
pub struct Emission {
    pub view: Arc<str>,
    pub window: Span,
    pub rows: RecordBatch,
}

/// A row that came after the last window it belonged to had closed; where corrections are asked for, after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Index of the view, as in [`Engine::views`].
    pub view: usize,
    /// Index of the row in what was pushed.
    pub row: u32,
    pub ts: EventTime,
    /// How far the view had closed when it came.
    pub closed_through: EventTime,
}

/// How far a view has come and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub view: &'a str,
    /// Windows that end at or before this are closed.
    pub closed_through: EventTime,
    /// Bytes of its open windows; what several views share is counted with each.
    pub bytes: usize,
    pub counts: Counts,
}

/// All running views and the clocks of their sources.
#[derive(Default)]
pub struct Engine {
    /// A view after all that it reads.
    views: Vec<View>,
    aggregations: Vec<Aggregation>,
    dimensions: Vec<Table>,
    routes: Routes,
    /// Rows dealt to each aggregation, kept for their buffers.
    hands: Vec<Vec<u32>>,
    metrics: Clock,
    events: Clock,
    /// Whether every partition is waited for, also those that stand aside: their readers are elsewhere, and promise how
    /// far nothing more will come.
    by_promises: bool,
}

impl Engine {
    /// Plans every view once. Definitions stand in the order of [`definition::Definitions`].
    ///
    /// # Errors
    /// A view that cannot be planned, or asks for what the engine does not do, with its file.
    pub async fn new(
        definitions: Vec<Definition>,
        dimensions: &[Table],
        events: &SchemaRef,
    ) -> Result<Engine, StreamError> {
        Engine::plan(definitions, dimensions, events, |_, _| true).await
    }

    /// Like [`Engine::new`], for one of several instances. Views share a pass only where a row that is late for one is late
    /// for all: what is gathered of them together cannot be told apart any more.
    pub async fn of_several(
        definitions: Vec<Definition>,
        dimensions: &[Table],
        events: &SchemaRef,
    ) -> Result<Engine, StreamError> {
        let late = |of: &Definition| (of.window, of.lateness);
        Engine::plan(definitions, dimensions, events, |one, other| late(one) == late(other)).await
    }

    async fn plan(
        definitions: Vec<Definition>,
        dimensions: &[Table],
        events: &SchemaRef,
        may_share: impl Fn(&Definition, &Definition) -> bool,
    ) -> Result<Engine, StreamError> {
        let mut catalog = Catalog { events, dimensions, views: Vec::new() };
        let mut shapes: Vec<(Shape, Vec<usize>, usize)> = Vec::new();
        let mut views: Vec<View> = Vec::with_capacity(definitions.len());
        for definition in definitions {
            let planned = plan::plan(&definition, &catalog).await?;
            catalog.views.push((definition.name.clone(), planned.schema().clone()));
            let number = views.len();
            let (kind, picks) = match planned {
                Planned::PerWindow { inputs, query, schema } => {
                    let input = |view: usize| Input {
                        view,
                        name: catalog.views[view].0.to_string(),
                        history: Default::default(),
                    };
                    (Kind::PerWindow { inputs: inputs.into_iter().map(input).collect(), query, schema }, Vec::new())
                }
                Planned::Windowed { shape, finish } => {
                    let failed = |source| StreamError::Plan { file: definition.file.clone(), source };
                    let bytes_max = definition.state_bytes_max;
                    let may_share = |known: usize| may_share(&views[known].definition, &definition);
                    let placed = place(&mut shapes, shape, number, bytes_max, may_share);
                    let (aggregation, picks) = placed.map_err(failed)?;
                    (Kind::Windowed { aggregation, finish, history: Default::default() }, picks)
                }
            };
            views.push(View::new(definition, kind, picks));
        }
        let aggregations = shapes.into_iter().map(|(shape, members, bytes_max)| {
            let file = views[members[0]].definition.file.clone();
            Aggregation::new(shape, members, bytes_max).map_err(|source| StreamError::Plan { file, source })
        });
        let mut aggregations = aggregations.collect::<Result<Vec<_>, _>>()?;
        correct::prepare(&mut views)?;
        partial::tell_apart(&mut aggregations);
        let hands = vec![Vec::new(); aggregations.len()];
        Ok(Engine { views, aggregations, hands, dimensions: dimensions.to_vec(), ..Engine::default() })
    }

    /// Returns name, definition and columns of every view.
    pub fn views(&self) -> impl Iterator<Item = (&Definition, SchemaRef)> {
        self.views.iter().map(|view| (&view.definition, view.schema().clone()))
    }

    /// Returns the dimension tables that the views are joined with.
    pub fn dimensions(&self) -> &[Table] {
        &self.dimensions
    }

    /// Takes in samples; what came too late for a view is put into `late`.
    pub fn push_samples(
        &mut self,
        samples: &Samples,
        interner: &Interner,
        late: &mut Vec<Late>,
    ) -> Result<(), StreamError> {
        self.extend_series(interner)?;
        self.routes.deal(&samples.series, &mut self.hands);
        for (aggregation, hand) in self.aggregations.iter_mut().zip(&mut self.hands) {
            if hand.is_empty() {
                continue;
            }
            let failed = self.views[aggregation.members[0]].failure();
            // The buffer is given away and one of its size made again: rows differ little from batch to batch.
            let rows = std::mem::replace(hand, Vec::with_capacity(hand.len()));
            aggregation.push_samples(rows, samples, &mut self.views, late).map_err(failed)?;
        }
        Ok(())
    }

    fn extend_series(&mut self, interner: &Interner) -> Result<(), StreamError> {
        while self.routes.len() < interner.len() {
            let new = self.routes.len()..interner.len().min(self.routes.len() + SERIES_CHUNK);
            let rows = series::columns(interner.range(new)).map_err(|source| StreamError::Series { source })?;
            let mut wanted = Vec::new();
            for (number, aggregation) in (0u16..).zip(&mut self.aggregations) {
                if aggregation.origin == Origin::Source(Source::Metrics) {
                    let failed = self.views[aggregation.members[0]].failure();
                    wanted.push((number, aggregation.extend_series(&rows).map_err(failed)?));
                }
            }
            self.routes.extend(rows.num_rows(), &wanted);
        }
        Ok(())
    }

    /// Takes in events, in the columns of the `events` table.
    pub fn push_events(&mut self, events: &RecordBatch, late: &mut Vec<Late>) -> Result<(), StreamError> {
        let time = events.column_by_name("ts").expect("events carry their time in the column ts");
        let ts = as_timestamp_microsecond_array(time).map_err(|source| StreamError::Rows { source })?.values().clone();
        self.push_rows(Origin::Source(Source::Events), events, &ts, late)
    }

    fn push_rows(
        &mut self,
        origin: Origin,
        rows: &RecordBatch,
        ts: &[i64],
        late: &mut Vec<Late>,
    ) -> Result<(), StreamError> {
        for aggregation in self.aggregations.iter_mut().filter(|aggregation| aggregation.origin == origin) {
            let failed = self.views[aggregation.members[0]].failure();
            aggregation.push_rows(rows, ts, &mut self.views, late).map_err(failed)?;
        }
        Ok(())
    }

    /// Returns the clock of a source, to be told of partitions and their progress.
    pub fn clock(&mut self, source: Source) -> &mut Clock {
        match source {
            Source::Metrics => &mut self.metrics,
            Source::Events => &mut self.events,
        }
    }

    /// Closes every window that the watermarks have passed, in order of window end, then of view.
    pub async fn advance(&mut self) -> Result<Vec<Emission>, StreamError> {
        self.close_all(Engine::watermark).await
    }

    /// Closes the windows whose watermark, by the number of their view, has passed them.
    async fn close_all(
        &mut self,
        watermark: impl Fn(&Engine, usize) -> Option<EventTime>,
    ) -> Result<Vec<Emission>, StreamError> {
        let mut emitted = Vec::new();
        for number in 0..self.views.len() {
            let Some(watermark) = watermark(self, number) else { continue };
            if !self.views[number].reach(watermark.as_micros()) {
                continue;
            }
            let made = self.close(number).await?;
            for emission in &made {
                self.feed(number, emission)?;
            }
            emitted.extend(made);
        }
        for aggregation in &mut self.aggregations {
            aggregation.trim(&mut self.views);
        }
        emitted.sort_by_key(|emission: &Emission| emission.window.end);
        Ok(emitted)
    }

    /// Returns how far event time has come for a view.
    fn watermark(&self, number: usize) -> Option<EventTime> {
        let view = &self.views[number];
        let closed = |view: usize| self.views[view].closed_through();
        let through = match &view.kind {
            Kind::PerWindow { inputs, .. } => inputs.iter().map(|input| closed(input.view)).min(),
            Kind::Windowed { aggregation, .. } => match self.aggregations[*aggregation].origin {
                Origin::View(input) => Some(closed(input)),
                Origin::Source(source) => self.low(source).map(|low| low - view.definition.lateness),
            },
        };
        through.filter(|through| *through > EventTime::MIN)
    }

    /// Returns how far a source has come. One that rests goes by the time of the other: a silent stream of events must
    /// not hold up what is said about metrics.
    fn low(&self, source: Source) -> Option<EventTime> {
        let (own, other) = self.clocks(source);
        if self.by_promises {
            return if own.is_empty() { other.promised() } else { own.promised() };
        }
        self.frontier_of(source)
    }

    /// Returns the clock of a source, and that of the other.
    fn clocks(&self, source: Source) -> (&Clock, &Clock) {
        match source {
            Source::Metrics => (&self.metrics, &self.events),
            Source::Events => (&self.events, &self.metrics),
        }
    }

    /// Returns how far a source has come by the partitions that do not stand aside.
    pub fn frontier_of(&self, source: Source) -> Option<EventTime> {
        let (own, other) = self.clocks(source);
        if own.is_resting() { own.low().max(other.low()) } else { own.low() }
    }

    /// Closes the windows of one view that its watermark has passed.
    async fn close(&mut self, number: usize) -> Result<Vec<Emission>, StreamError> {
        let watermark = self.views[number].watermark();
        let failed = self.views[number].failure();
        let Kind::Windowed { aggregation, .. } = self.views[number].kind else {
            return self.views[number].combine(watermark).await.map_err(failed);
        };
        let aggregation = &mut self.aggregations[aggregation];
        let begins_from = match aggregation.origin {
            Origin::View(input) => Some(self.views[input].begins_from()),
            Origin::Source(_) => None,
        };
        let view = &mut self.views[number];
        let closed = aggregation.close(view, begins_from.unwrap_or(watermark)).map_err(&failed)?;
        if let Some(from) = begins_from {
            view.close_over_view(from, watermark);
        }
        let mut made = Vec::with_capacity(closed.len());
        for (window, groups) in closed {
            made.extend(view.finish(window, groups).await.map_err(&failed)?);
        }
        Ok(made)
    }

    /// Gives a window to the views that read its view.
    fn feed(&mut self, number: usize, emission: &Emission) -> Result<(), StreamError> {
        let (rows, ts) = view::as_input(&emission.rows).map_err(|source| StreamError::Rows { source })?;
        // Its windows are not closed while a window of what it reads may still come: nothing can be late here.
        self.push_rows(Origin::View(number), &rows, &ts, &mut Vec::new())?;
        self.views.iter_mut().for_each(|view| view.take(number, emission));
        Ok(())
    }

    /// Returns the time through which a view has closed its windows; `EventTime::MIN` where it has closed none.
    pub fn closed_through(&self, view: &str) -> EventTime {
        let view = self.views.iter().find(|one| &*one.definition.name == view);
        view.map_or(EventTime::MIN, View::closed_through)
    }

    /// Returns the time through which every view has closed its windows; none where there is no view.
    pub fn complete_through(&self) -> Option<EventTime> {
        self.views.iter().map(View::closed_through).min()
    }

    /// Returns how far each view has come and what it holds.
    pub fn progress(&self) -> impl Iterator<Item = Progress<'_>> {
        self.views.iter().map(|view| {
            let open = match view.kind {
                Kind::Windowed { aggregation, .. } => self.aggregations[aggregation].bytes(),
                Kind::PerWindow { .. } => 0,
            };
            Progress {
                view: &view.definition.name,
                closed_through: view.closed_through(),
                bytes: open + view.history_bytes(),
                counts: view.counts,
            }
        })
    }

    /// Takes every partition into account again.
    pub fn wake(&mut self) {
        self.metrics.wake();
        self.events.wake();
    }

    /// Tells whether a partition stands aside, in the clock of its source.
    pub fn is_idle(&self, partition: &PartitionKey) -> bool {
        self.metrics.is_idle(partition) || self.events.is_idle(partition)
    }

    /// Forgets a partition that moved to another instance.
    pub fn drop_partition(&mut self, partition: &PartitionKey) {
        self.metrics.remove(partition);
        self.events.remove(partition);
    }
}

/// Finds an aggregation that serves a view too, or begins one; returns it and where the view's aggregates stand in it.
fn place(
    shapes: &mut Vec<(Shape, Vec<usize>, usize)>,
    shape: Shape,
    view: usize,
    bytes_max: usize,
    may_share: impl Fn(usize) -> bool,
) -> Result<(usize, Vec<usize>), DataFusionError> {
    for (number, (known, members, bytes)) in shapes.iter_mut().enumerate() {
        if may_share(members[0])
            && let Some(picks) = known.take_in(&shape)?
        {
            members.push(view);
            *bytes = bytes.saturating_add(bytes_max);
            return Ok((number, picks));
        }
    }
    let picks = (0..shape.aggregates.len()).collect();
    shapes.push((shape, vec![view], bytes_max));
    Ok((shapes.len() - 1, picks))
}
