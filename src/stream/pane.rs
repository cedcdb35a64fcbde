//! Partial aggregates of one pane: per group key, one state of every aggregate, held by vectorised accumulators.

use arrow::array::{ArrayRef, BooleanArray};
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};

use super::plan::Aggregate;

const ABSENT: u32 = u32::MAX;

/// Groups and their accumulators.
pub(super) struct Groups {
    /// The group of each key, [`ABSENT`] where it has none: keys are numbered densely, so no hashing.
    group_of: Vec<u32>,
    /// The key of each group.
    pub keys: Vec<u32>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
}

impl Groups {
    pub fn new(aggregates: &[Aggregate]) -> Result<Groups> {
        let accumulators = aggregates.iter().map(Aggregate::accumulator).collect::<Result<Vec<_>>>()?;
        Ok(Groups { group_of: Vec::new(), keys: Vec::new(), accumulators })
    }

    /// Returns the group of each key, making those that are new.
    pub fn assign(&mut self, keys: impl Iterator<Item = u32>) -> Vec<usize> {
        keys.map(|key| self.group(key)).collect()
    }

    fn group(&mut self, key: u32) -> usize {
        let at = key as usize;
        if at >= self.group_of.len() {
            self.group_of.resize(at + 1, ABSENT);
        }
        let group = &mut self.group_of[at];
        if *group == ABSENT {
            *group = self.keys.len() as u32;
            self.keys.push(key);
        }
        *group as usize
    }

    /// Takes rows into the accumulators: the arguments and the filter of each aggregate, and the group of each row.
    pub fn update(&mut self, inputs: &[(Vec<ArrayRef>, Option<BooleanArray>)], groups: &[usize]) -> Result<()> {
        for (accumulator, (arguments, filter)) in self.accumulators.iter_mut().zip(inputs) {
            accumulator.update_batch(arguments, groups, filter.as_ref(), self.keys.len())?;
        }
        Ok(())
    }

    fn merge(&mut self, frozen: &Frozen) -> Result<()> {
        let groups = self.assign(frozen.keys.iter().copied());
        for (accumulator, states) in self.accumulators.iter_mut().zip(&frozen.states) {
            accumulator.merge_batch(states, &groups, self.keys.len())?;
        }
        Ok(())
    }

    /// Ends the groups: returns one column of results per aggregate, in the order of `keys`.
    pub fn evaluate(&mut self) -> Result<Vec<ArrayRef>> {
        self.accumulators.iter_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).collect()
    }

    fn freeze(mut self) -> Result<Frozen> {
        let states = self.accumulators.iter_mut().map(|accumulator| accumulator.state(EmitTo::All));
        Ok(Frozen { states: states.collect::<Result<_>>()?, keys: self.keys })
    }

    pub fn bytes(&self) -> usize {
        let accumulators: usize = self.accumulators.iter().map(|accumulator| accumulator.size()).sum();
        accumulators + (self.group_of.capacity() + self.keys.capacity()) * size_of::<u32>()
    }
}

/// States taken out of their accumulators: they can be merged into any number of windows.
struct Frozen {
    keys: Vec<u32>,
    states: Vec<Vec<ArrayRef>>,
}

/// One slice of event time, the finest that all windows of a view are made of.
#[derive(Default)]
pub(super) struct Pane {
    live: Option<Groups>,
    frozen: Vec<Frozen>,
}

impl Pane {
    pub fn groups(&mut self, aggregates: &[Aggregate]) -> Result<&mut Groups> {
        let live = match self.live.take() {
            Some(live) => live,
            None => Groups::new(aggregates)?,
        };
        Ok(self.live.insert(live))
    }

    /// Gives the pane up for the one window it belongs to.
    pub fn into_groups(mut self, aggregates: &[Aggregate]) -> Result<Groups> {
        match (self.live.take(), self.frozen.is_empty()) {
            (Some(live), true) => Ok(live),
            (live, _) => {
                self.live = live;
                let mut groups = Groups::new(aggregates)?;
                self.merge_into(&mut groups)?;
                Ok(groups)
            }
        }
    }

    /// Adds the pane to a window, and keeps it for the next.
    pub fn merge_into(&mut self, window: &mut Groups) -> Result<()> {
        if let Some(live) = self.live.take() {
            self.frozen.push(live.freeze()?);
        }
        self.frozen.iter().try_for_each(|frozen| window.merge(frozen))
    }

    pub fn keys(&self) -> impl Iterator<Item = u32> {
        let live = self.live.iter().flat_map(|groups| groups.keys.iter().copied());
        live.chain(self.frozen.iter().flat_map(|frozen| frozen.keys.iter().copied()))
    }

    /// Takes up the new numbers of keys after [`super::keys::Keys::compact`].
    pub fn renumber(&mut self, renumbered: &[Option<u32>]) {
        let to_new = |key: &mut u32| *key = renumbered[*key as usize].expect("keys of open panes are kept");
        for frozen in &mut self.frozen {
            frozen.keys.iter_mut().for_each(to_new);
        }
        if let Some(live) = &mut self.live {
            live.keys.iter_mut().for_each(to_new);
            live.group_of.clear();
            for (group, &key) in live.keys.iter().enumerate() {
                let at = key as usize;
                if at >= live.group_of.len() {
                    live.group_of.resize(at + 1, ABSENT);
                }
                live.group_of[at] = group as u32;
            }
        }
    }

    pub fn bytes(&self) -> usize {
        let state = |states: &Vec<ArrayRef>| states.iter().map(|s| s.get_array_memory_size()).sum::<usize>();
        let frozen: usize = self.frozen.iter().map(|frozen| frozen.states.iter().map(state).sum::<usize>()).sum();
        frozen + self.live.as_ref().map_or(0, Groups::bytes)
    }
}
