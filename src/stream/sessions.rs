//! Session windows: runs of rows of one key without a long pause. A run is its bounds and the partial aggregates of its
//! parts; rows are never kept.
//!
//! A row behind the watermark is taken in where it continues a session that is open, or begins one that would be; it is
//! late where it comes within the gap of one that has ended. So what the sessions are depends on the set of the rows
//! taken in alone: no order of arrival makes two of one, or one of two.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use datafusion::error::Result;

use super::intake::Selection;
use super::pane::{Accumulators, Aggregate, Frozen};
use super::window::Window;
use crate::model::time::micros;

/// The rows of one run within one cell of the cutting grid.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: i64,
    last: i64,
    /// The group of its aggregates.
    slot: u32,
}

/// Rows of one key with no pause above the gap between them, in order of time.
struct Run {
    /// The first row of the run, though the parts at its head may be emitted and gone.
    began: i64,
    last: i64,
    parts: Vec<Part>,
}

/// A session that is over, or cut.
struct Piece {
    key: u32,
    first: i64,
    last: i64,
    slots: Vec<u32>,
}

/// What became of rows.
#[derive(Default)]
pub(super) struct Taken {
    /// Positions, among the rows given, of those that came too late.
    pub late: Vec<u32>,
    /// How many found no room.
    pub refused: usize,
}

enum Place {
    Slot(u32),
    Late,
    Full,
}

/// Closed sessions, ready to be put into the columns of a view.
pub(super) struct Closed {
    /// The emission they belong to, by its end.
    pub end: i64,
    pub keys: Vec<u32>,
    pub starts: Vec<i64>,
    pub ends: Vec<i64>,
    pub results: Vec<ArrayRef>,
}

pub(super) struct Sessions {
    gap: i64,
    cell: i64,
    step: i64,
    /// By key.
    runs: BTreeMap<u32, Vec<Run>>,
    accumulators: Accumulators,
    slots: usize,
    /// No session ends before this.
    ends_from: i64,
    /// Whether every row behind the watermark is late. What a row could still join is not known where the sessions of
    /// other partitions are elsewhere.
    strict: bool,
}

impl Sessions {
    pub fn new(window: Window, aggregates: &[Aggregate]) -> Result<Sessions> {
        let gap = match window {
            Window::Session { gap, .. } => micros(gap),
            Window::Hop { .. } => unreachable!("panes are for windows of equal width"),
        };
        let accumulators = Accumulators::new(aggregates)?;
        let (cell, step) = (window.cell(), window.closing_step());
        Ok(Sessions {
            gap,
            cell,
            step,
            runs: BTreeMap::new(),
            accumulators,
            slots: 0,
            ends_from: i64::MAX,
            strict: false,
        })
    }

    /// Takes every row behind the watermark for late from now on.
    pub fn be_strict(&mut self) {
        self.strict = true;
    }

    /// Takes rows in; `ts` is the time of each row of `rows`. Where `watermark` has passed a session's end, it is over. At
    /// most `room` new sessions are begun.
    pub fn update(
        &mut self,
        aggregates: &[Aggregate],
        rows: Selection,
        ts: &[i64],
        watermark: i64,
        room: usize,
    ) -> Result<Taken> {
        let most = self.slots.saturating_add(room);
        let mut groups = Vec::with_capacity(ts.len());
        let mut kept = Vec::with_capacity(ts.len());
        let mut taken = Taken::default();
        for (at, (&key, &ts)) in (0u32..).zip(rows.keys.iter().zip(ts)) {
            match self.place(key, (ts, ts), watermark, most) {
                Place::Slot(slot) => {
                    groups.push(slot as usize);
                    kept.push(at);
                }
                Place::Late => taken.late.push(at),
                Place::Full => taken.refused += 1,
            }
        }
        let rows = if kept.len() == ts.len() { rows } else { rows.part(kept)? };
        self.accumulators.update(aggregates, &rows, &groups, self.slots)?;
        Ok(taken)
    }

    /// Takes in parts of sessions that were aggregated elsewhere: of each the key, and in `bounds` its first row's time
    /// and its last one's, both in one cell. Otherwise as [`Sessions::update`].
    pub fn merge(&mut self, parts: &Frozen, bounds: [&[i64]; 2], watermark: i64, room: usize) -> Result<Taken> {
        let most = self.slots.saturating_add(room);
        let (mut groups, mut kept) = (Vec::new(), Vec::new());
        let mut taken = Taken::default();
        for (at, &key) in parts.keys().iter().enumerate() {
            match self.place(key, (bounds[0][at], bounds[1][at]), watermark, most) {
                Place::Slot(slot) => {
                    groups.push(slot as usize);
                    kept.push(at as u32);
                }
                Place::Late => taken.late.push(at as u32),
                Place::Full => taken.refused += 1,
            }
        }
        let kept = parts.part(&UInt32Array::from(kept))?;
        self.accumulators.merge(kept.states(), &groups, self.slots)?;
        Ok(taken)
    }

    /// Takes everything out: parts of sessions with the times of their first and last rows.
    pub fn drain(&mut self, aggregates: &[Aggregate]) -> Result<(Frozen, [Vec<i64>; 2])> {
        let (mut keys, mut bounds, mut slots) = (Vec::new(), [Vec::new(), Vec::new()], Vec::new());
        for (key, runs) in std::mem::take(&mut self.runs) {
            for part in runs.into_iter().flat_map(|run| run.parts) {
                keys.push(key);
                bounds[0].push(part.first);
                bounds[1].push(part.last);
                slots.push(part.slot);
            }
        }
        let states = pick(&self.accumulators.states()?, &UInt32Array::from(slots))?;
        (self.accumulators, self.slots, self.ends_from) = (Accumulators::new(aggregates)?, 0, i64::MAX);
        Ok((Frozen::new(keys, states), bounds))
    }

    /// Finds or makes the part that rows belong to which lie in one cell, from the first to the last without a pause.
    fn place(&mut self, key: u32, (first, last): (i64, i64), watermark: i64, most: usize) -> Place {
        let (gap, cell) = (self.gap, self.cell);
        if self.strict && first < watermark {
            return Place::Late;
        }
        let known = self.runs.get(&key).map_or(&[][..], Vec::as_slice);
        let near = |run: &Run| run.began - gap <= last && first <= run.last + gap;
        if first < watermark && known.iter().any(|run| near(run) && run.is_over(first, watermark, gap, cell)) {
            return Place::Late;
        }
        let joined = known.iter().position(near);
        if joined.is_none() && last + gap < watermark {
            return Place::Late;
        }
        if joined.is_none() && self.slots >= most {
            return Place::Full;
        }
        let runs = self.runs.entry(key).or_default();
        let at = match joined {
            Some(at) => at,
            None => {
                let at = runs.partition_point(|run| run.last < first);
                runs.insert(at, Run { began: first, last, parts: Vec::new() });
                self.ends_from = self.ends_from.min(last + gap);
                at
            }
        };
        // They may fill the pauses between runs.
        while runs.get(at + 1).is_some_and(near) {
            let later = runs.remove(at + 1);
            let run = &mut runs[at];
            run.last = later.last;
            run.parts.extend(later.parts);
        }
        let run = &mut runs[at];
        (run.began, run.last) = (run.began.min(first), run.last.max(last));
        let of_cell = first.div_euclid(cell);
        if let Some(part) = run.parts.iter_mut().find(|part| part.first.div_euclid(cell) == of_cell) {
            (part.first, part.last) = (part.first.min(first), part.last.max(last));
            return Place::Slot(part.slot);
        }
        // A run that is taken in goes on, whatever it costs: half a session would be worse than none.
        let slot = self.slots as u32;
        self.slots += 1;
        run.parts.push(Part { first, last, slot });
        run.parts.sort_by_key(|part| part.first);
        Place::Slot(slot)
    }

    /// Closes the sessions that end before `through`, a point of the closing grid: nothing at or after it can join them.
    pub fn close(&mut self, through: i64, aggregates: &[Aggregate]) -> Result<Vec<Closed>> {
        if self.ends_from >= through {
            return Ok(Vec::new());
        }
        let mut pieces: BTreeMap<i64, Vec<Piece>> = BTreeMap::new();
        let mut ends_from = i64::MAX;
        for (&key, runs) in &mut self.runs {
            for run in runs.iter_mut() {
                for piece in take_pieces(key, run, through, self.gap, self.cell) {
                    let end = ((piece.last + self.gap).div_euclid(self.step) + 1) * self.step;
                    pieces.entry(end).or_default().push(piece);
                }
                let next = run.parts.first().map_or(run.last + self.gap, |part| part.last);
                ends_from = ends_from.min(next.saturating_add(self.gap));
            }
            forget(runs, through, self.gap);
        }
        self.runs.retain(|_, runs| !runs.is_empty());
        self.ends_from = ends_from;
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let states = self.accumulators.states()?;
        let closed = pieces.into_iter().map(|(end, pieces)| finish(end, pieces, &states, aggregates));
        let closed = closed.collect::<Result<Vec<_>>>()?;
        self.keep(&states, aggregates)?;
        Ok(closed)
    }

    /// Goes on with the parts that are still open, each under a new slot; parts of one cell become one.
    fn keep(&mut self, states: &[Vec<ArrayRef>], aggregates: &[Aggregate]) -> Result<()> {
        let cell = self.cell;
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let mut slots = 0u32;
        for run in self.runs.values_mut().flatten() {
            let mut joined: Vec<Part> = Vec::with_capacity(run.parts.len());
            for part in run.parts.drain(..) {
                let same = joined.last_mut().filter(|j| j.first.div_euclid(cell) == part.first.div_euclid(cell));
                match same {
                    Some(same) => same.last = same.last.max(part.last),
                    None => {
                        joined.push(Part { slot: slots, ..part });
                        slots += 1;
                    }
                }
                old.push(part.slot);
                new.push(slots as usize - 1);
            }
            run.parts = joined;
        }
        self.slots = slots as usize;
        self.accumulators = Accumulators::new(aggregates)?;
        let old = UInt32Array::from(old);
        let kept = pick(states, &old)?;
        self.accumulators.merge(&kept, &new, self.slots)
    }

    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.runs.keys().copied()
    }

    pub fn renumber(&mut self, renumbered: &[Option<u32>]) {
        let old = std::mem::take(&mut self.runs);
        let new = |key: u32| renumbered[key as usize].expect("keys of open sessions are kept");
        self.runs = old.into_iter().map(|(key, runs)| (new(key), runs)).collect();
    }

    pub fn len(&self) -> usize {
        self.runs.values().map(Vec::len).sum()
    }

    pub fn bytes(&self) -> usize {
        let keys = self.runs.len() * size_of::<(u32, Vec<Run>)>();
        self.accumulators.bytes() + keys + self.slots * (size_of::<Run>() + size_of::<Part>())
    }
}

impl Run {
    /// Returns the piece that a time falls into. A run is cut at every multiple of the cell that lies a whole cell or more
    /// after its beginning. So the first piece is shorter than two cells and every other is one cell; and whether a cut
    /// is made is told by the cell before it alone.
    fn piece_of(&self, ts: i64, cell: i64) -> i64 {
        let first_cut = (self.began + cell + cell - 1).div_euclid(cell) * cell;
        if ts < first_cut { i64::MIN } else { ts.div_euclid(cell) }
    }

    /// Tells whether the piece that a row of this time would fall into has ended.
    fn is_over(&self, ts: i64, watermark: i64, gap: i64, cell: i64) -> bool {
        let piece = self.piece_of(ts, cell);
        let own = self.parts.iter().filter(|part| self.piece_of(part.first, cell) == piece);
        let last = match own.map(|part| part.last).max() {
            Some(last) => last,
            // Emitted, where the run has gone on since; else the row goes on with the run.
            None if self.parts.iter().any(|part| part.first > ts) => return true,
            None => self.last,
        };
        last + gap < watermark
    }
}

/// Forgets the runs that are emitted. One is remembered while a row could join it to a session that is open, or that may
/// still begin a gap behind the watermark.
fn forget(runs: &mut Vec<Run>, through: i64, gap: i64) {
    let mut later_began = i64::MAX;
    for at in (0..runs.len()).rev() {
        let run = &runs[at];
        if run.parts.is_empty() && later_began > run.last + 2 * gap && run.last + 3 * gap < through {
            runs.remove(at);
        } else {
            later_began = run.began;
        }
    }
}

/// Takes from a run what is over: all of it, or the pieces that were cut off its head.
fn take_pieces(key: u32, run: &mut Run, through: i64, gap: i64, cell: i64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some(head) = run.parts.first().copied() {
        let piece = run.piece_of(head.first, cell);
        let size = run.parts.iter().take_while(|part| run.piece_of(part.first, cell) == piece).count();
        let parts = &run.parts[..size];
        let last = parts.iter().map(|part| part.last).max().unwrap_or(head.last);
        if last + gap >= through {
            break;
        }
        pieces.push(Piece { key, first: head.first, last, slots: parts.iter().map(|part| part.slot).collect() });
        run.parts.drain(..size);
    }
    pieces
}

/// Merges the parts of each piece and ends its aggregates.
fn finish(end: i64, pieces: Vec<Piece>, states: &[Vec<ArrayRef>], aggregates: &[Aggregate]) -> Result<Closed> {
    let mut accumulators = Accumulators::new(aggregates)?;
    let slots: UInt32Array = pieces.iter().flat_map(|piece| piece.slots.iter().copied()).collect();
    let groups: Vec<usize> =
        pieces.iter().enumerate().flat_map(|(at, piece)| piece.slots.iter().map(move |_| at)).collect();
    accumulators.merge(&pick(states, &slots)?, &groups, pieces.len())?;
    Ok(Closed {
        end,
        keys: pieces.iter().map(|piece| piece.key).collect(),
        starts: pieces.iter().map(|piece| piece.first).collect(),
        ends: pieces.iter().map(|piece| piece.last).collect(),
        results: accumulators.evaluate()?,
    })
}

fn pick(states: &[Vec<ArrayRef>], at: &UInt32Array) -> Result<Vec<Vec<ArrayRef>>> {
    let columns = |columns: &Vec<ArrayRef>| columns.iter().map(|column| Ok(take(column, at, None)?)).collect();
    states.iter().map(columns).collect()
}
