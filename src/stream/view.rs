//! One running view: how far it has closed its windows, and what it makes of their groups.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};

use super::definition::Definition;
use super::finish::{Finish, History, of_window, stored};
use super::per_window::WindowQuery;
use super::plan::WINDOW_COLUMNS;
use super::sliding::Sliding;
use super::window::Window;
use super::{Emission, Late, StreamError};
use crate::model::time::{EventTime, Span, micros};

/// How a view comes to its rows.
pub(super) enum Kind {
    /// From the groups of the aggregation with this number.
    Windowed { aggregation: usize, finish: Finish, history: History },
    /// From the rows that other views have for the same window.
    PerWindow { inputs: Vec<Input>, query: WindowQuery, schema: SchemaRef },
}

/// A view that another reads window by window.
pub(super) struct Input {
    pub view: usize,
    pub name: String,
    pub history: History,
}

/// What a view has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Rows that might have met its conditions: of events all, of samples those of the series that can.
    pub offered: u64,
    /// Rows that went into its windows.
    pub rows: u64,
    pub late: u64,
    /// Rows whose group found no room.
    pub refused: u64,
    pub emitted_rows: u64,
    pub emitted_windows: u64,
    /// Windows that held rows, of which what follows the aggregate left none.
    pub emptied: u64,
}

pub(super) struct View {
    pub definition: Definition,
    pub kind: Kind,
    /// Windows that end at or before this are closed, microseconds.
    closed: i64,
    /// Windows that end at or before this were emitted by an earlier run.
    emitted: i64,
    /// Event time is past this.
    watermark: i64,
    /// Which of its aggregation's aggregates are its own.
    pub picks: Vec<usize>,
    pub sliding: Sliding,
    pub counts: Counts,
    /// Whether it is still to take up what is stored.
    pub rebuilding: bool,
    /// Whether a row is told of that came too late for some of its windows, not only one that did for all.
    pub tells_partly_late: bool,
}

impl View {
    pub fn new(definition: Definition, kind: Kind, picks: Vec<usize>) -> View {
        View {
            definition,
            kind,
            closed: i64::MIN,
            emitted: i64::MIN,
            watermark: i64::MIN,
            picks,
            sliding: Sliding::default(),
            counts: Counts::default(),
            rebuilding: true,
            tells_partly_late: false,
        }
    }

    /// Takes over how far another has come.
    pub fn stand_where(&mut self, other: &mut View) {
        (self.closed, self.emitted, self.watermark) = (other.closed, other.emitted, other.watermark);
        (self.sliding, self.counts) = (std::mem::take(&mut other.sliding), other.counts);
        self.rebuilding = false;
    }

    pub fn schema(&self) -> &SchemaRef {
        match &self.kind {
            Kind::Windowed { finish, .. } => &finish.schema,
            Kind::PerWindow { schema, .. } => schema,
        }
    }

    /// Returns the time through which every window is emitted, by this run or one before.
    pub fn closed_through(&self) -> EventTime {
        EventTime::from_micros(self.closed.max(self.emitted))
    }

    /// Returns a time that no row it will still emit begins before.
    pub fn begins_from(&self) -> i64 {
        let closed = self.closed.max(self.emitted);
        match self.definition.window {
            _ if closed == i64::MIN => i64::MIN,
            Window::Hop { width, slide } => first_open(closed, width, slide),
            window @ Window::Session { .. } => closed - 2 * window.cell() - window.gap(),
        }
    }

    pub fn close_through(&mut self, through: i64) {
        self.closed = self.closed.max(through);
    }

    pub fn watermark(&self) -> i64 {
        self.watermark
    }

    /// Moves the watermark; tells whether it moved.
    pub fn reach(&mut self, watermark: i64) -> bool {
        let moved = watermark > self.watermark;
        self.watermark = self.watermark.max(watermark);
        moved
    }

    /// Takes what ends at or before a time for closed, from now on; it may be earlier than before. For one that only
    /// gathers, whose rows come from partitions that have come differently far.
    pub fn stand_at(&mut self, through: i64) {
        (self.closed, self.watermark) = (through, through);
    }

    /// Tells whether every window that holds a time is closed.
    pub fn has_closed_all_of(&self, ts: i64) -> bool {
        self.all_end_by(ts, self.closed)
    }

    /// Tells whether every window that holds a time ends by another.
    pub fn all_end_by(&self, ts: i64, closed: i64) -> bool {
        match self.definition.window {
            Window::Hop { width, slide } => {
                let (width, slide) = (micros(width), micros(slide));
                (ts - ts.rem_euclid(slide)).saturating_add(width) <= closed
            }
            Window::Session { .. } => false,
        }
    }

    /// Tells whether a row comes too late for all its windows; and whether that is to be told, which it also is where it
    /// comes too late for some and the view, or one that reads it, is corrected.
    pub fn is_late(&self, ts: i64) -> [bool; 2] {
        // Windows of an earlier run take in rows again only while they are rebuilt.
        let closed = if self.rebuilding { self.closed } else { self.closed.max(self.emitted) };
        let for_all = self.all_end_by(ts, closed);
        let first_ends_by = |closed| {
            let first = self.definition.window.holding(EventTime::from_micros(ts)).next();
            first.is_some_and(|first| first.end.as_micros() <= closed)
        };
        [for_all, for_all || (self.tells_partly_late && first_ends_by(closed))]
    }

    /// Counts a row that came too late; `number` is that of the view.
    pub fn note_late(&mut self, number: usize, row: u32, ts: i64) -> Late {
        self.counts.late += 1;
        Late { view: number, row, ts: EventTime::from_micros(ts), closed_through: self.closed_through() }
    }

    /// Takes up where an earlier run stopped: what it emitted is not emitted again.
    pub fn resume(&mut self, through: EventTime) {
        self.emitted = self.emitted.max(through.as_micros());
        self.closed = self.closed.max(through.as_micros().saturating_sub(micros(self.looks_back())));
        if matches!(self.definition.window, Window::Session { .. }) {
            // Their older rows are needed to know where the open ones began.
            self.closed = i64::MIN;
        }
    }

    /// Ends the rebuilding of its open windows.
    pub fn rebuilt(&mut self) {
        self.watermark = self.watermark.max(self.emitted);
        self.rebuilding = false;
    }

    /// Tells whether it goes on from windows that were emitted before.
    pub fn needs_closed_windows(&self) -> bool {
        self.emitted > i64::MIN
            && (matches!(self.definition.window, Window::Session { .. }) || !self.looks_back().is_zero())
    }

    /// How far back its functions look.
    pub fn looks_back(&self) -> Duration {
        let looks = match &self.kind {
            Kind::Windowed { finish, .. } => finish.looks_back(),
            Kind::PerWindow { query, .. } => query.looks_back,
        };
        if looks { self.definition.lookback + self.definition.window.slide() } else { Duration::ZERO }
    }

    /// Returns the start of the oldest row that bears on what is still to be emitted; `EventTime::MIN` where nothing
    /// was emitted yet.
    pub fn needs_from(&self) -> EventTime {
        match self.emitted {
            i64::MIN => EventTime::MIN,
            emitted => EventTime::from_micros(emitted) - self.definition.window.reach() - self.looks_back(),
        }
    }

    /// Returns the start of the oldest row that bears on the windows after those that end at or before `stored`.
    pub fn bears_from(&self, stored: EventTime) -> EventTime {
        stored - self.definition.window.reach() - self.looks_back()
    }

    /// Returns the start of the first window that is not closed.
    pub fn needs_panes_from(&self) -> i64 {
        match self.definition.window {
            Window::Hop { width, slide } => first_open(self.closed, width, slide),
            Window::Session { .. } => i64::MIN,
        }
    }

    /// Closes, of a view over a view that has come `through`, what the rows that may still come cannot touch: they begin
    /// at or after `from`.
    pub fn close_over_view(&mut self, from: i64, through: i64) {
        let Window::Hop { width, slide } = self.definition.window else { return };
        let next_end = first_open(from, width, slide) + micros(width);
        self.close_through(through.min(next_end - 1).max(from));
    }

    /// Puts groups into the columns of the aggregate.
    pub fn groups(&self, bounds: [ArrayRef; 2], keys: &[ArrayRef], results: &[ArrayRef]) -> Result<RecordBatch> {
        match &self.kind {
            Kind::Windowed { finish, .. } => finish.groups(bounds, keys, results),
            Kind::PerWindow { .. } => unreachable!("only windowed views are members of aggregations"),
        }
    }

    /// Makes the rows of a closed window of its groups; none where an earlier run emitted them, or nothing is left.
    pub async fn finish(&mut self, window: Span, groups: RecordBatch) -> Result<Option<Emission>> {
        let horizon = window.end - self.looks_back();
        let emitted = window.end.as_micros() <= self.emitted;
        let Kind::Windowed { finish, history, .. } = &mut self.kind else {
            unreachable!("only windowed views have groups")
        };
        let mut before = Vec::new();
        if finish.looks_back() {
            history.forget_through(horizon);
            before = history.rows();
            self.counts.refused += history.push(window.end, groups.clone(), self.definition.state_bytes_max);
        }
        if emitted {
            return Ok(None);
        }
        let rows = finish.rows(window, groups, before).await?;
        Ok(self.emission(window, rows))
    }

    /// Takes in a window of a view it reads.
    pub fn take(&mut self, view: usize, emission: &Emission) {
        let Kind::PerWindow { inputs, .. } = &mut self.kind else { return };
        for input in inputs.iter_mut().filter(|input| input.view == view) {
            let bytes_max = self.definition.state_bytes_max;
            self.counts.refused += input.history.push(emission.window.end, emission.rows.clone(), bytes_max);
        }
    }

    /// Runs its query for every window up to `through` that one of its inputs has.
    pub async fn combine(&mut self, through: i64) -> Result<Vec<Emission>> {
        let looks_back = self.looks_back();
        let (closed, emitted) = (self.closed, self.emitted);
        let Kind::PerWindow { inputs, query, schema } = &mut self.kind else { return Ok(Vec::new()) };
        let mut windows: Vec<Span> =
            inputs.iter().flat_map(|input| input.history.windows(&self.definition.window)).collect();
        windows.sort_by_key(|window| window.end);
        windows.dedup();
        let mut made = Vec::new();
        for window in windows {
            let end = window.end.as_micros();
            if end <= closed.max(emitted) || end > through {
                continue;
            }
            let from = if query.looks_back { window.end - looks_back } else { window.end - Duration::from_micros(1) };
            let tables = inputs.iter().map(|input| (input.name.as_str(), input.history.between(from, window.end)));
            let rows = query.run(tables.collect::<Vec<_>>()).await?;
            let rows = if query.looks_back { of_window(rows, window)? } else { rows };
            made.push((window, stored(schema, &rows)?));
        }
        let horizon = EventTime::from_micros(through) - looks_back;
        inputs.iter_mut().for_each(|input| input.history.forget_through(horizon));
        self.close_through(through);
        Ok(made.into_iter().filter_map(|(window, rows)| self.emission(window, rows)).collect())
    }

    fn emission(&mut self, window: Span, rows: RecordBatch) -> Option<Emission> {
        if rows.num_rows() == 0 {
            self.counts.emptied += 1;
            return None;
        }
        self.counts.emitted_rows += rows.num_rows() as u64;
        self.counts.emitted_windows += 1;
        Some(Emission { view: self.definition.name.clone(), window, rows })
    }

    pub fn history_bytes(&self) -> usize {
        match &self.kind {
            Kind::Windowed { history, .. } => history.bytes(),
            Kind::PerWindow { inputs, .. } => inputs.iter().map(|input| input.history.bytes()).sum(),
        }
    }

    pub fn failure(&self) -> impl Fn(DataFusionError) -> StreamError + use<> {
        let view = self.definition.name.to_string();
        move |source| StreamError::Aggregate { view: view.clone(), source }
    }
}

/// Returns the start of the first window that ends after `closed`: windows start in steps of the slide.
pub(super) fn first_open(closed: i64, width: Duration, slide: Duration) -> i64 {
    let (width, slide) = (micros(width), micros(slide));
    closed.saturating_sub(width).div_euclid(slide).saturating_add(1).saturating_mul(slide)
}

/// Returns a view's rows as another view reads them: its window's start is the time of a row, which is returned too.
pub(super) fn as_input(rows: &RecordBatch) -> Result<(RecordBatch, Vec<i64>)> {
    let start = datafusion::common::cast::as_timestamp_microsecond_array(
        rows.column_by_name(WINDOW_COLUMNS[0]).expect("every view selects its window's bounds"),
    )?;
    let ts: Vec<i64> = start.values().to_vec();
    let fields = rows.schema_ref().fields().iter().zip(rows.columns());
    let rest = fields.filter(|(field, _)| !WINDOW_COLUMNS.contains(&field.name().as_str())).map(|(_, c)| c.clone());
    let columns = std::iter::once(Arc::new(start.clone()) as ArrayRef).chain(rest).collect();
    Ok((super::intake::unnamed(columns, rows.num_rows())?, ts))
}
