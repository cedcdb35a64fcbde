//! Continuous queries: rows go in with their event time, closed windows come out when the watermark passes them.
//!
//! Synchronous and deterministic: what comes out depends on the rows, their order and the watermark alone. Never reads
//! a clock, never waits, never touches Kafka or the store.

pub mod definition;
mod keys;
mod pane;
mod plan;
mod series;
#[cfg(test)]
mod tests;
mod view;
pub mod watermark;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use crate::model::batch::Samples;
use crate::model::series::Interner;
use crate::model::time::{EventTime, Span};
use definition::Definition;
use series::SeriesTable;
use view::View;
use watermark::{Clock, PartitionKey};

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{file}:{line}: {message}")]
    Syntax { file: String, line: u64, message: String },
    #[error("{file}: {message}")]
    Unsupported { file: String, message: String },
    #[error("{file}: the query cannot be planned")]
    Plan { file: String, source: DataFusionError },
    #[error("view {view} is defined in both {first} and {second}")]
    Duplicate { view: String, first: String, second: String },
    #[error("failed to aggregate rows of view {view}")]
    Aggregate { view: String, source: DataFusionError },
    #[error("failed to evaluate an expression over series")]
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

/// A row that came after the last window it belonged to had closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Index of the view, as in [`Engine::views`].
    pub view: usize,
    /// Index of the row in what was pushed.
    pub row: u32,
    pub ts: EventTime,
    /// The view's watermark when it came.
    pub closed_through: EventTime,
}

/// All running views and the clocks of their sources.
pub struct Engine {
    series: SeriesTable,
    views: Vec<View>,
    metrics: Clock,
    events: Clock,
}

impl Engine {
    /// Plans every view once.
    ///
    /// # Errors
    /// A view that does not parse, cannot be planned, or asks for what the engine does not do, with its file.
    pub async fn new(definitions: Vec<Definition>, events_schema: &SchemaRef) -> Result<Engine, StreamError> {
        let mut views: Vec<View> = Vec::with_capacity(definitions.len());
        for definition in definitions {
            if let Some(other) = views.iter().find(|view| view.definition.name == definition.name) {
                return Err(StreamError::Duplicate {
                    view: definition.name.to_string(),
                    first: other.definition.file.clone(),
                    second: definition.file,
                });
            }
            let plan = plan::plan(&definition, events_schema).await?;
            views.push(View::new(definition, plan)?);
        }
        Ok(Engine { series: SeriesTable::default(), views, metrics: Clock::default(), events: Clock::default() })
    }

    /// Returns name, definition and columns of every view.
    pub fn views(&self) -> impl Iterator<Item = (&Definition, SchemaRef)> {
        self.views.iter().map(|view| (&view.definition, view.output_schema()))
    }

    /// Takes in samples; what came too late for a view is put into `late`.
    pub fn push_samples(
        &mut self,
        samples: &Samples,
        interner: &Interner,
        late: &mut Vec<Late>,
    ) -> Result<(), StreamError> {
        self.series.extend(interner)?;
        for (at, view) in self.views.iter_mut().enumerate().filter(|(_, view)| view.source() == Source::Metrics) {
            view.push_samples(at, samples, &self.series, late)?;
        }
        Ok(())
    }

    /// Takes in events, in the columns of the `events` table.
    pub fn push_events(&mut self, events: &RecordBatch, late: &mut Vec<Late>) -> Result<(), StreamError> {
        for (at, view) in self.views.iter_mut().enumerate().filter(|(_, view)| view.source() == Source::Events) {
            view.push_events(at, events, late)?;
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
    pub fn advance(&mut self) -> Result<Vec<Emission>, StreamError> {
        let mut emitted = Vec::new();
        for view in &mut self.views {
            let clock = match view.source() {
                Source::Metrics => &self.metrics,
                Source::Events => &self.events,
            };
            if let Some(low) = clock.low() {
                view.close_through(low.saturating_sub(view.definition.lateness), &mut emitted)?;
            }
        }
        emitted.sort_by_key(|emission: &Emission| emission.window.end);
        Ok(emitted)
    }

    /// Returns the time through which every view has closed its windows; none where there is no view.
    pub fn complete_through(&self) -> Option<EventTime> {
        self.views.iter().map(View::closed_through).min()
    }

    /// Returns how far each view has come, with the bytes of its open windows.
    pub fn progress(&self) -> impl Iterator<Item = (&str, EventTime, usize)> {
        self.views.iter().map(|view| (&*view.definition.name, view.closed_through(), view.bytes()))
    }

    /// Takes up a view where its table stands: windows that end at or before `through` are never emitted again. Rows of
    /// such windows that are pushed to rebuild the open ones come back as late; who pushes them knows they are not.
    pub fn resume(&mut self, view: &str, through: EventTime) {
        if let Some(view) = self.views.iter_mut().find(|v| &*v.definition.name == view) {
            view.resume(through);
        }
    }

    /// Returns from which time on rows of a source are needed to rebuild the open windows; none where nothing was ever
    /// closed, and so everything is needed.
    pub fn needs_from(&self, source: Source) -> Option<EventTime> {
        let starts = self.views.iter().filter(|view| view.source() == source).map(View::needs_from);
        starts.min().filter(|&from| from > EventTime::MIN)
    }

    /// Forgets a partition that moved to another instance.
    pub fn drop_partition(&mut self, partition: &PartitionKey) {
        self.metrics.remove(partition);
        self.events.remove(partition);
    }
}
