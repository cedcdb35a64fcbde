//! One running aggregation: selected rows go into panes or sessions, closed windows come out as groups. Serves all
//! views that read the same rows under the same keys.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take;
use arrow::error::ArrowError;
use datafusion::error::Result;

use super::intake::{Candidates, Intake, Selection};
use super::keys::Keys;
use super::pane::{Aggregate, Frozen, Panes};
use super::partial::Partial;
use super::plan::Origin;
use super::sessions::Sessions;
use super::shape::Shape;
use super::view::View;
use super::window::Window;
use super::{Late, Source};
use crate::model::batch::Samples;
use crate::model::time::{EventTime, Span, micros};

/// Keys of an aggregation by what changes from row to row are forgotten once this many are out of use.
const UNUSED_KEYS_MAX: usize = 65_536;

enum Open {
    Panes(Panes),
    Sessions(Sessions),
}

pub(super) struct Aggregation {
    pub origin: Origin,
    /// Tells it from every other by what it computes, the same in every process.
    pub identity: String,
    intake: Intake,
    keys: Keys,
    aggregates: Vec<Aggregate>,
    /// What is done with a row before it is aggregated, for people.
    steps: Vec<String>,
    open: Open,
    /// The views it serves, by number.
    pub members: Vec<usize>,
    /// Bytes of open windows beyond which no new group is taken in.
    bytes_max: usize,
    /// Bytes of what rows no longer go into: frozen panes and stacks, as of the last window that closed.
    settled_bytes: usize,
    /// Whether a window closed since they were counted.
    closed_some: bool,
    /// Whether its open windows are still to be rebuilt from what is stored.
    pub rebuilding: bool,
}

impl Aggregation {
    pub fn new(mut shape: Shape, members: Vec<usize>, bytes_max: usize) -> Result<Aggregation> {
        let steps = std::mem::take(&mut shape.steps);
        let (origin, window, width) = (shape.origin, shape.window, shape.pane_width());
        let keys = Keys::new(&shape.key_types)?;
        let identity = shape.identity(&steps);
        let (intake, aggregates) = shape.into_intake()?;
        let open = match window {
            Window::Hop { .. } => Open::Panes(Panes::new(width)),
            Window::Session { .. } => Open::Sessions(Sessions::new(window, &aggregates)?),
        };
        Ok(Aggregation {
            origin,
            identity,
            intake,
            keys,
            aggregates,
            steps,
            open,
            members,
            bytes_max,
            settled_bytes: 0,
            closed_some: false,
            rebuilding: true,
        })
    }

    /// Tells whether rows of a source are needed to rebuild its open windows.
    pub fn is_rebuilding_from(&self, source: Source) -> bool {
        self.rebuilding && self.origin == Origin::Source(source)
    }

    /// Goes on with the open windows of another that takes in and aggregates the same; its number may be another.
    pub fn adopt(&mut self, old: Aggregation) {
        let (origin, members, bytes_max) = (self.origin, std::mem::take(&mut self.members), self.bytes_max);
        *self = Aggregation { origin, members, bytes_max, rebuilding: false, ..old };
    }

    /// Takes in new series and tells which of them have rows that can pass.
    pub fn extend_series(&mut self, new: &RecordBatch) -> Result<BooleanArray> {
        self.intake.extend_series(new, &mut self.keys)
    }

    /// Takes in samples; `rows` are of series that can pass.
    pub fn push_samples(
        &mut self,
        rows: Vec<u32>,
        samples: &Samples,
        views: &mut [View],
        late: &mut Vec<Late>,
    ) -> Result<()> {
        self.members.iter().for_each(|&member| views[member].counts.offered += rows.len() as u64);
        let candidates = self.intake.of_samples(rows, samples)?;
        self.push(candidates, &samples.ts, views, late)
    }

    /// Takes in rows of events or of a view: all columns of the input but the window's, and the time of each.
    pub fn push_rows(
        &mut self,
        rows: &RecordBatch,
        ts: &[i64],
        views: &mut [View],
        late: &mut Vec<Late>,
    ) -> Result<()> {
        self.members.iter().for_each(|&member| views[member].counts.offered += rows.num_rows() as u64);
        let candidates = self.intake.of_rows(rows)?;
        self.push(candidates, ts, views, late)
    }

    fn push(&mut self, rows: Candidates, ts: &[i64], views: &mut [View], late: &mut Vec<Late>) -> Result<()> {
        let rows = match self.open {
            Open::Panes(_) => self.drop_late(rows, ts, views, late)?,
            // Whether a row is late for a session is known when its key is.
            Open::Sessions(_) => rows,
        };
        if rows.rows.is_empty() {
            return Ok(());
        }
        let selection = self.intake.select(rows, &mut self.keys)?;
        let mut taken = selection.rows.len();
        let room = if self.bytes() < self.bytes_max { usize::MAX } else { 0 };
        let refused = match &mut self.open {
            Open::Panes(panes) => accumulate(panes, &self.aggregates, selection, ts, room, |pane| {
                self.members.iter().for_each(|&member| views[member].sliding.touch(pane));
            })?,
            Open::Sessions(sessions) => {
                let view = &mut views[self.members[0]];
                let rows = selection.rows.clone();
                let ts: Vec<i64> = rows.iter().map(|&row| ts[row as usize]).collect();
                let done = sessions.update(&self.aggregates, selection, &ts, view.watermark(), room)?;
                taken -= done.late.len();
                done.late
                    .iter()
                    .for_each(|&at| late.push(view.note_late(self.members[0], rows[at as usize], ts[at as usize])));
                done.refused
            }
        };
        for &member in &self.members {
            views[member].counts.rows += (taken - refused) as u64;
            views[member].counts.refused += refused as u64;
        }
        Ok(())
    }

    /// Notes the rows that come too late for a view, and drops those that do for every view.
    fn drop_late(
        &self,
        mut rows: Candidates,
        ts: &[i64],
        views: &mut [View],
        late: &mut Vec<Late>,
    ) -> Result<Candidates> {
        let Some(oldest) = rows.rows.iter().map(|&row| ts[row as usize]).min() else { return Ok(rows) };
        if !self.members.iter().any(|&member| views[member].is_late(oldest)[1]) {
            return Ok(rows);
        }
        let mut wanted = vec![false; rows.rows.len()];
        for &member in &self.members {
            let view = &mut views[member];
            for (wanted, &row) in wanted.iter_mut().zip(&rows.rows) {
                let ts = ts[row as usize];
                let [for_all, is_told] = view.is_late(ts);
                *wanted |= !for_all;
                if is_told {
                    late.push(view.note_late(member, row, ts));
                }
            }
        }
        rows.keep(&BooleanArray::from(wanted))?;
        Ok(rows)
    }

    /// Becomes one that only gathers partial states, of rows whose windows are closed elsewhere.
    pub fn gather(&mut self) {
        if let Open::Sessions(sessions) = &mut self.open {
            sessions.be_strict();
        }
    }

    /// Takes out what was aggregated since the last time.
    pub fn drain(&mut self, views: &mut [View]) -> Result<Partial> {
        let (groups, bounds) = match &mut self.open {
            Open::Panes(panes) => {
                let (width, parts) = (panes.width, panes.drain()?);
                let starts = parts.iter().flat_map(|(start, part)| part.keys().iter().map(|_| *start));
                let starts: Vec<i64> = starts.collect();
                let ends = starts.iter().map(|start| start + width).collect();
                let parts: Vec<Frozen> = parts.into_iter().map(|(_, part)| part).collect();
                (Frozen::concat(&parts)?, [starts, ends])
            }
            Open::Sessions(sessions) => sessions.drain(&self.aggregates)?,
        };
        let keys = self.keys.columns(groups.keys())?;
        let partial = Partial { bounds, keys, states: groups.states().to_vec() };
        self.forget_unused_keys(views);
        Ok(partial)
    }

    /// Merges what was gathered elsewhere; returns how many groups were left out, as every window of theirs is closed: after
    /// a restart what is needed again comes with what is not.
    pub fn merge(&mut self, partial: Partial, views: &mut [View]) -> Result<usize> {
        let [from, to] = &partial.bounds;
        let keys = self.keys.intern(&partial.keys, from.len())?;
        let groups = Frozen::new(keys, partial.states);
        let room = if self.bytes() < self.bytes_max { usize::MAX } else { 0 };
        let (mut taken, mut refused) = (0, 0);
        match &mut self.open {
            Open::Panes(panes) => {
                for pane in from.chunk_by(|a, b| a == b) {
                    let at = (pane.as_ptr() as usize - from.as_ptr() as usize) / size_of::<i64>();
                    if self.members.iter().all(|&member| views[member].has_closed_all_of(pane[0])) {
                        continue;
                    }
                    self.members.iter().for_each(|&member| views[member].sliding.touch(pane[0]));
                    refused += panes.merge(pane[0], &self.aggregates, groups.slice(at, pane.len()), room)?;
                    taken += pane.len();
                }
            }
            Open::Sessions(sessions) => {
                let watermark = views[self.members[0]].watermark();
                let done = sessions.merge(&groups, [from, to], watermark, room)?;
                (taken, refused) = (from.len() - done.late.len(), done.refused);
            }
        }
        for &member in &self.members {
            views[member].counts.offered += from.len() as u64;
            views[member].counts.rows += (taken - refused) as u64;
            views[member].counts.refused += refused as u64;
        }
        Ok(from.len() - taken)
    }

    /// Returns the number of columns that a group's key takes, and of those that its state takes of each aggregate.
    pub fn widths(&self) -> Result<(usize, Vec<usize>)> {
        let states = self.aggregates.iter().map(|aggregate| Ok(aggregate.function.state_fields()?.len()));
        Ok((self.keys.width(), states.collect::<Result<_>>()?))
    }

    /// Closes the windows of one view that end at or before `watermark`; returns them as groups, in order.
    pub fn close(&mut self, view: &mut View, watermark: i64) -> Result<Vec<(Span, RecordBatch)>> {
        let mut closed = Vec::new();
        match (&mut self.open, view.definition.window) {
            (Open::Panes(panes), Window::Hop { width, slide }) => {
                let (width, slide) = (micros(width), micros(slide));
                let alone = self.members.len() == 1 && panes.width == width;
                while let Some(start) = next_window(panes, view.needs_panes_from(), width, slide) {
                    if start + width > watermark {
                        break;
                    }
                    let mut groups = match alone {
                        true => panes.give_up(start, &self.aggregates)?,
                        false => view.sliding.window(panes, (start, start + width), &self.aggregates, &view.picks)?,
                    };
                    view.close_through(start + width);
                    if !groups.keys.is_empty() {
                        let results = groups.evaluate()?;
                        let bounds = (vec![start; groups.keys.len()], vec![start + width; groups.keys.len()]);
                        let span = Span::new(EventTime::from_micros(start), EventTime::from_micros(start + width));
                        closed.push((span, as_rows(&self.keys, view, groups.keys, bounds, results)?));
                    }
                }
                view.close_through(watermark);
            }
            (Open::Sessions(sessions), window) => {
                let (step, gap) = (window.closing_step(), window.gap());
                let through = watermark.div_euclid(step) * step;
                for one in sessions.close(through, &self.aggregates)? {
                    let ends = one.ends.iter().map(|last| last + gap).collect();
                    let span = Span::new(EventTime::from_micros(one.end - step), EventTime::from_micros(one.end));
                    closed.push((span, as_rows(&self.keys, view, one.keys, (one.starts, ends), one.results)?));
                }
                view.close_through(through);
            }
            (Open::Panes(_), Window::Session { .. }) => unreachable!("shapes are shared among windows of one kind"),
        }
        self.closed_some |= !closed.is_empty();
        Ok(closed)
    }

    /// Forgets what no view needs any longer.
    pub fn trim(&mut self, views: &mut [View]) {
        if !std::mem::take(&mut self.closed_some) {
            return;
        }
        if let Open::Panes(panes) = &mut self.open {
            let needed = self.members.iter().map(|&member| views[member].needs_panes_from()).min();
            panes.drop_before(needed.unwrap_or(i64::MIN));
            let stacks = self.members.iter().map(|&member| views[member].sliding.bytes());
            self.settled_bytes = panes.frozen_bytes() + stacks.sum::<usize>();
        }
        self.forget_unused_keys(views);
    }

    /// Keys that come from series stay as long as the series do; keys that come from rows are dropped when no open
    /// window holds them and many such have gathered.
    fn forget_unused_keys(&mut self, views: &mut [View]) {
        if self.intake.keys_per_series() || self.keys.len() < UNUSED_KEYS_MAX {
            return;
        }
        let mut used: Vec<u32> = match &self.open {
            Open::Panes(panes) => panes.keys().collect(),
            Open::Sessions(sessions) => sessions.keys().collect(),
        };
        self.members.iter().for_each(|&member| used.extend(views[member].sliding.keys()));
        used.sort_unstable();
        used.dedup();
        if self.keys.len() - used.len() < UNUSED_KEYS_MAX {
            return;
        }
        let renumbered = self.keys.compact(&used);
        match &mut self.open {
            Open::Panes(panes) => panes.renumber(&renumbered),
            Open::Sessions(sessions) => sessions.renumber(&renumbered),
        }
        self.members.iter().for_each(|&member| views[member].sliding.renumber(&renumbered));
    }

    /// Returns the bytes of all open windows. Asked for with every batch, so what is settled is not counted anew.
    pub fn bytes(&self) -> usize {
        let open = match &self.open {
            Open::Panes(panes) => panes.live_bytes(),
            Open::Sessions(sessions) => sessions.bytes(),
        };
        open + self.settled_bytes + self.keys.bytes()
    }

    /// Says what is done with each row, step by step.
    pub fn describe(&self) -> Vec<String> {
        let aggregates = self.aggregates.iter().map(|aggregate| format!("aggregate {}", aggregate.sql));
        self.steps.iter().cloned().chain(aggregates).collect()
    }

    /// Returns how many panes or sessions are open, and how many distinct keys are known.
    pub fn sizes(&self) -> (usize, usize) {
        let open = match &self.open {
            Open::Panes(panes) => panes.len(),
            Open::Sessions(sessions) => sessions.len(),
        };
        (open, self.keys.len())
    }
}

/// Returns the start of the first window from `open` on that holds a pane.
fn next_window(panes: &Panes, open: i64, width: i64, slide: i64) -> Option<i64> {
    let pane = panes.first_from(open)?;
    let first = ((pane - width).div_euclid(slide) + 1) * slide;
    Some(first.max(open))
}

/// Puts rows into their panes; returns how many found no room.
fn accumulate(
    panes: &mut Panes,
    aggregates: &[Aggregate],
    rows: Selection,
    ts: &[i64],
    room: usize,
    mut touch: impl FnMut(i64),
) -> Result<usize> {
    let width = panes.width;
    let mut by_pane: Vec<(i64, Vec<u32>)> = Vec::new();
    let mut current = 0;
    for (at, &row) in (0u32..).zip(&rows.rows) {
        let ts = ts[row as usize];
        let within = |(start, _): &(i64, Vec<u32>)| *start <= ts && ts - *start < width;
        // Neighbours mostly share a pane, so the division is rare.
        if !by_pane.get(current).is_some_and(within) {
            current = by_pane.iter().position(within).unwrap_or_else(|| {
                by_pane.push((ts - ts.rem_euclid(width), Vec::new()));
                by_pane.len() - 1
            });
        }
        by_pane[current].1.push(at);
    }
    if let [(start, _)] = by_pane[..] {
        touch(start);
        return panes.update(start, aggregates, rows, room);
    }
    let mut refused = 0;
    for (start, at) in by_pane {
        touch(start);
        refused += panes.update(start, aggregates, rows.part(at)?, room)?;
    }
    Ok(refused)
}

/// Puts the groups of a window into rows, sorted by key: in one order, whatever came first.
fn as_rows(
    keys: &Keys,
    view: &View,
    groups: Vec<u32>,
    (starts, ends): (Vec<i64>, Vec<i64>),
    results: Vec<ArrayRef>,
) -> Result<RecordBatch> {
    let mut order: Vec<(u32, usize)> = groups.into_iter().zip(0..).collect();
    keys.sort(&mut order);
    let at = UInt32Array::from_iter_values(order.iter().map(|(_, group)| *group as u32));
    let sorted: Vec<u32> = order.iter().map(|(key, _)| *key).collect();
    let results = results.iter().map(|column| take(column, &at, None)).collect::<Result<Vec<_>, ArrowError>>()?;
    let time = |of: Vec<i64>| -> ArrayRef {
        let sorted = order.iter().map(|(_, group)| of[*group]);
        Arc::new(TimestampMicrosecondArray::from_iter_values(sorted).with_timezone("UTC"))
    };
    view.groups([time(starts), time(ends)], &keys.columns(&sorted)?, &results)
}
