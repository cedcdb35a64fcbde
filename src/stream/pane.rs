//! Partial aggregates per group key, held by DataFusion's vectorised accumulators: of one pane while rows still come,
//! and frozen, to be merged into any number of windows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::{concat, take};
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::intake::Selection;

const ABSENT: u32 = u32::MAX;

/// One aggregate function over columns of the selected rows.
#[derive(Clone)]
pub(super) struct Aggregate {
    pub function: Arc<AggregateFunctionExpr>,
    /// What is computed, in words; two with equal words compute the same.
    pub words: String,
    /// As a person writes it.
    pub sql: String,
    /// Indices into the selection's columns.
    pub arguments: Vec<usize>,
    /// Index into the selection's masks.
    pub filter: Option<usize>,
}

/// One accumulator per aggregate, each over all groups.
pub(super) struct Accumulators(Vec<Box<dyn GroupsAccumulator>>);

impl Accumulators {
    pub fn new<'a>(aggregates: impl IntoIterator<Item = &'a Aggregate>) -> Result<Accumulators> {
        let each = aggregates.into_iter().map(|aggregate| {
            if aggregate.function.groups_accumulator_supported() {
                return aggregate.function.create_groups_accumulator();
            }
            let function = Arc::clone(&aggregate.function);
            let adapter = GroupsAccumulatorAdapter::new(move || function.create_accumulator());
            Ok(Box::new(adapter) as Box<dyn GroupsAccumulator>)
        });
        Ok(Accumulators(each.collect::<Result<_>>()?))
    }

    /// Takes in rows; `groups` has the group of each, all below `total`.
    pub fn update(&mut self, aggregates: &[Aggregate], rows: &Selection, groups: &[usize], total: usize) -> Result<()> {
        for (accumulator, aggregate) in self.0.iter_mut().zip(aggregates) {
            let arguments: Vec<ArrayRef> =
                aggregate.arguments.iter().map(|&at| Arc::clone(&rows.columns[at])).collect();
            let mask = aggregate.filter.map(|at| &rows.masks[at]);
            accumulator.update_batch(&arguments, groups, mask, total)?;
        }
        Ok(())
    }

    /// Merges states, one list of columns per accumulator.
    pub fn merge<'a>(
        &mut self,
        states: impl IntoIterator<Item = &'a Vec<ArrayRef>>,
        groups: &[usize],
        total: usize,
    ) -> Result<()> {
        for (accumulator, states) in self.0.iter_mut().zip(states) {
            accumulator.merge_batch(states, groups, total)?;
        }
        Ok(())
    }

    /// Ends the groups: one column of results per aggregate.
    pub fn evaluate(&mut self) -> Result<Vec<ArrayRef>> {
        self.0.iter_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).collect()
    }

    /// Empties the accumulators into their states.
    pub fn states(&mut self) -> Result<Vec<Vec<ArrayRef>>> {
        self.0.iter_mut().map(|accumulator| accumulator.state(EmitTo::All)).collect()
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().map(|accumulator| accumulator.size()).sum()
    }
}

/// Groups and their accumulators.
pub(super) struct Groups {
    /// The group of each key, [`ABSENT`] where it has none: keys are numbered densely, so no hashing.
    group_of: Vec<u32>,
    /// The key of each group.
    pub keys: Vec<u32>,
    accumulators: Accumulators,
}

impl Groups {
    pub fn new<'a>(aggregates: impl IntoIterator<Item = &'a Aggregate>) -> Result<Groups> {
        Ok(Groups { group_of: Vec::new(), keys: Vec::new(), accumulators: Accumulators::new(aggregates)? })
    }

    /// Takes rows in. At most `room` new groups are made; the rows of others are left out, and their number returned.
    pub fn update(&mut self, aggregates: &[Aggregate], rows: Selection, room: usize) -> Result<usize> {
        let most = self.keys.len().saturating_add(room);
        let mut groups = Vec::with_capacity(rows.keys.len());
        let mut kept: Option<Vec<u32>> = None;
        for (at, &key) in (0u32..).zip(&rows.keys) {
            match self.group(key, most) {
                Some(group) => {
                    groups.push(group);
                    if let Some(kept) = &mut kept {
                        kept.push(at);
                    }
                }
                None => {
                    kept.get_or_insert_with(|| (0..at).collect());
                }
            }
        }
        let refused = rows.keys.len() - groups.len();
        let rows = match kept {
            None => rows,
            Some(kept) => rows.part(kept)?,
        };
        self.accumulators.update(aggregates, &rows, &groups, self.keys.len())?;
        Ok(refused)
    }

    fn group(&mut self, key: u32, most: usize) -> Option<usize> {
        let at = key as usize;
        if at >= self.group_of.len() {
            self.group_of.resize(at + 1, ABSENT);
        }
        let group = &mut self.group_of[at];
        if *group == ABSENT {
            if self.keys.len() >= most {
                return None;
            }
            *group = self.keys.len() as u32;
            self.keys.push(key);
        }
        Some(*group as usize)
    }

    /// Merges frozen groups; `picks` says which of their states belong to the aggregates here.
    pub fn merge(&mut self, frozen: &Frozen, picks: &[usize]) -> Result<()> {
        let groups: Vec<usize> = frozen.keys.iter().filter_map(|&key| self.group(key, usize::MAX)).collect();
        self.accumulators.merge(picks.iter().map(|&at| &frozen.states[at]), &groups, self.keys.len())
    }

    /// Ends the groups: one column of results per aggregate, in the order of `keys`.
    pub fn evaluate(&mut self) -> Result<Vec<ArrayRef>> {
        self.accumulators.evaluate()
    }

    /// Merges all states of frozen groups, of which at most `room` may be new here; returns how many were left out.
    fn merge_within(&mut self, frozen: Frozen, room: usize) -> Result<usize> {
        let (most, all) = (self.keys.len().saturating_add(room), frozen.keys.len());
        let kept: Vec<u32> =
            (0u32..).zip(&frozen.keys).filter_map(|(at, &key)| self.group(key, most).map(|_| at)).collect();
        let refused = all - kept.len();
        let frozen = if refused == 0 { frozen } else { frozen.part(&UInt32Array::from(kept))? };
        self.merge(&frozen, &(0..frozen.states.len()).collect::<Vec<_>>())?;
        Ok(refused)
    }

    pub fn freeze(mut self) -> Result<Frozen> {
        Ok(Frozen { states: self.accumulators.states()?, keys: self.keys })
    }

    fn renumber(&mut self, renumbered: &[Option<u32>]) {
        renumber(&mut self.keys, renumbered);
        self.group_of.clear();
        for (group, &key) in self.keys.iter().enumerate() {
            let at = key as usize;
            if at >= self.group_of.len() {
                self.group_of.resize(at + 1, ABSENT);
            }
            self.group_of[at] = group as u32;
        }
    }

    fn bytes(&self) -> usize {
        self.accumulators.bytes() + (self.group_of.capacity() + self.keys.capacity()) * size_of::<u32>()
    }
}

/// States taken out of their accumulators.
#[derive(Clone)]
pub(super) struct Frozen {
    keys: Vec<u32>,
    /// Of each aggregate, the columns of its state.
    states: Vec<Vec<ArrayRef>>,
}

impl Frozen {
    pub fn new(keys: Vec<u32>, states: Vec<Vec<ArrayRef>>) -> Frozen {
        Frozen { keys, states }
    }

    /// Puts several into one, one after the other; a key may then stand in it more than once.
    pub fn concat(parts: &[Frozen]) -> Result<Frozen> {
        let states = parts.first().map_or(0, |first| first.states.len());
        let column = |aggregate: usize, at: usize| {
            let columns: Vec<&dyn Array> = parts.iter().map(|part| part.states[aggregate][at].as_ref()).collect();
            Ok(concat(&columns)?)
        };
        let states = (0..states)
            .map(|aggregate| (0..parts[0].states[aggregate].len()).map(|at| column(aggregate, at)).collect());
        let states = states.collect::<Result<_>>()?;
        Ok(Frozen { keys: parts.iter().flat_map(|part| part.keys.iter().copied()).collect(), states })
    }

    pub fn states(&self) -> &[Vec<ArrayRef>] {
        &self.states
    }

    pub fn part(&self, at: &UInt32Array) -> Result<Frozen> {
        let take = |columns: &Vec<ArrayRef>| columns.iter().map(|column| Ok(take(column, at, None)?)).collect();
        let keys = at.values().iter().map(|&at| self.keys[at as usize]).collect();
        Ok(Frozen { keys, states: self.states.iter().map(take).collect::<Result<_>>()? })
    }

    /// Returns `len` groups from `from` on.
    pub fn slice(&self, from: usize, len: usize) -> Frozen {
        let states = self.states.iter().map(|columns| columns.iter().map(|column| column.slice(from, len)).collect());
        Frozen { keys: self.keys[from..from + len].to_vec(), states: states.collect() }
    }

    pub fn keys(&self) -> &[u32] {
        &self.keys
    }

    pub fn renumber(&mut self, renumbered: &[Option<u32>]) {
        renumber(&mut self.keys, renumbered);
    }

    pub fn bytes(&self) -> usize {
        let columns = self.states.iter().flatten().map(|column| column.get_array_memory_size()).sum::<usize>();
        columns + self.keys.capacity() * size_of::<u32>()
    }
}

/// Takes up the new numbers of keys after [`super::keys::Keys::compact`].
pub(super) fn renumber(keys: &mut [u32], renumbered: &[Option<u32>]) {
    for key in keys {
        *key = renumbered[*key as usize].expect("keys of open windows are kept");
    }
}

/// One slice of event time, the finest that all windows over it are made of.
#[derive(Default)]
pub(super) struct Pane {
    live: Option<Groups>,
    frozen: Vec<Frozen>,
}

impl Pane {
    /// Freezes what came since the last time, and returns all of it.
    fn parts(&mut self) -> Result<&[Frozen]> {
        if let Some(live) = self.live.take() {
            self.frozen.push(live.freeze()?);
        }
        Ok(&self.frozen)
    }

    fn keys(&self) -> impl Iterator<Item = u32> {
        let live = self.live.iter().flat_map(|groups| groups.keys.iter().copied());
        live.chain(self.frozen.iter().flat_map(|frozen| frozen.keys.iter().copied()))
    }
}

/// The open panes of an aggregation.
pub(super) struct Panes {
    /// By start, microseconds.
    by_start: BTreeMap<i64, Pane>,
    pub width: i64,
}

impl Panes {
    pub fn new(width: i64) -> Panes {
        Panes { by_start: BTreeMap::new(), width }
    }

    /// Takes rows into the pane that begins at `start`; returns how many found no room.
    pub fn update(&mut self, start: i64, aggregates: &[Aggregate], rows: Selection, room: usize) -> Result<usize> {
        let pane = self.by_start.entry(start).or_default();
        let mut live = match pane.live.take() {
            Some(live) => live,
            None => Groups::new(aggregates)?,
        };
        let refused = live.update(aggregates, rows, room);
        pane.live = Some(live);
        refused
    }

    /// Merges partial states into the pane that begins at `start`; returns how many found no room.
    pub fn merge(&mut self, start: i64, aggregates: &[Aggregate], partial: Frozen, room: usize) -> Result<usize> {
        let pane = self.by_start.entry(start).or_default();
        let mut live = match pane.live.take() {
            Some(live) => live,
            None => Groups::new(aggregates)?,
        };
        let refused = live.merge_within(partial, room);
        pane.live = Some(live);
        refused
    }

    /// Takes everything out: the start of each pane with its groups, in order of time.
    pub fn drain(&mut self) -> Result<Vec<(i64, Frozen)>> {
        let mut drained = Vec::new();
        for (start, mut pane) in std::mem::take(&mut self.by_start) {
            pane.parts()?;
            drained.extend(pane.frozen.into_iter().filter(|part| !part.keys.is_empty()).map(|part| (start, part)));
        }
        Ok(drained)
    }

    /// Returns the start of the first pane that begins at or after a time.
    pub fn first_from(&self, from: i64) -> Option<i64> {
        self.by_start.range(from..).next().map(|(start, _)| *start)
    }

    /// Gives a pane up, where one window alone is made of it.
    pub fn give_up(&mut self, start: i64, aggregates: &[Aggregate]) -> Result<Groups> {
        match self.by_start.remove(&start) {
            Some(Pane { live: Some(live), frozen }) if frozen.is_empty() => Ok(live),
            pane => {
                let all: Vec<usize> = (0..aggregates.len()).collect();
                let mut groups = Groups::new(aggregates)?;
                for part in pane.unwrap_or_default().parts()? {
                    groups.merge(part, &all)?;
                }
                Ok(groups)
            }
        }
    }

    /// Returns the panes that begin in `[from, to)`, frozen, in order of time.
    pub fn range(&mut self, from: i64, to: i64) -> impl DoubleEndedIterator<Item = Result<(i64, &[Frozen])>> {
        self.by_start.range_mut(from..to).map(|(start, pane)| Ok((*start, pane.parts()?)))
    }

    /// Drops the panes that begin before `start`.
    pub fn drop_before(&mut self, start: i64) {
        if self.by_start.keys().next().is_some_and(|first| *first < start) {
            self.by_start = self.by_start.split_off(&start);
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.by_start.values().flat_map(Pane::keys)
    }

    pub fn renumber(&mut self, renumbered: &[Option<u32>]) {
        for pane in self.by_start.values_mut() {
            pane.frozen.iter_mut().for_each(|frozen| frozen.renumber(renumbered));
            pane.live.iter_mut().for_each(|live| live.renumber(renumbered));
        }
    }

    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Returns the bytes of what rows still go into.
    pub fn live_bytes(&self) -> usize {
        self.by_start.values().filter_map(|pane| pane.live.as_ref()).map(Groups::bytes).sum()
    }

    pub fn frozen_bytes(&self) -> usize {
        self.by_start.values().flat_map(|pane| &pane.frozen).map(Frozen::bytes).sum()
    }
}
