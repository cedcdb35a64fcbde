//! Overlapping windows out of panes: two stacks of partial aggregates, so that what a window costs does not grow with
//! the number of panes in it.
//!
//! The front stack holds, for each pane before a turning point, the merge of that pane and all up to the point; the back
//! holds the merge of all panes after it. A window is one entry of the front and the back. Moving on drops the oldest
//! entry and adds a pane to the back; where the front runs empty, a new one is built at once out of the panes of the
//! window. Works for every mergeable aggregate, as nothing is ever subtracted (Tangwongsan et al., "General incremental
//! sliding-window aggregation", VLDB 2015).

use datafusion::error::Result;

use super::pane::{Aggregate, Frozen, Groups, Panes};

/// With fewer panes in a window, merging them anew costs less than keeping stacks.
const PANES_MIN: i64 = 6;

#[derive(Default)]
pub(super) struct Sliding {
    /// Start of a pane, and the merge of the panes from it to the turning point; the oldest last.
    front: Vec<(i64, Frozen)>,
    /// The merge of the panes from the turning point on.
    back: Option<Frozen>,
    /// Where the back ends; the panes before are merged already. None before the first window.
    merged_through: Option<i64>,
}

impl Sliding {
    /// Returns the aggregates, in the order of `picks`, of the panes that begin in `[start, end)`. Windows must be asked
    /// for in order.
    pub fn window(
        &mut self,
        panes: &mut Panes,
        (start, end): (i64, i64),
        aggregates: &[Aggregate],
        picks: &[usize],
    ) -> Result<Groups> {
        let mut window = Groups::new(picked(aggregates, picks))?;
        if end - start < PANES_MIN * panes.width {
            for pane in panes.range(start, end) {
                pane?.1.iter().try_for_each(|part| window.merge(part, picks))?;
            }
            return Ok(window);
        }
        while self.front.pop_if(|(pane, _)| *pane < start).is_some() {}
        let own: Vec<usize> = (0..picks.len()).collect();
        match self.merged_through {
            Some(merged) if !self.front.is_empty() => self.push(panes, (merged, end), aggregates, picks)?,
            _ => self.turn(panes, (start, end), aggregates, picks)?,
        }
        if let Some((_, front)) = self.front.last() {
            window.merge(front, &own)?;
        }
        if let Some(back) = &self.back {
            window.merge(back, &own)?;
        }
        Ok(window)
    }

    /// Adds panes to the back.
    fn push(&mut self, panes: &mut Panes, (from, to): (i64, i64), all: &[Aggregate], picks: &[usize]) -> Result<()> {
        let own: Vec<usize> = (0..picks.len()).collect();
        for pane in panes.range(from, to) {
            let mut back = Groups::new(picked(all, picks))?;
            if let Some(before) = &self.back {
                back.merge(before, &own)?;
            }
            pane?.1.iter().try_for_each(|part| back.merge(part, picks))?;
            self.back = Some(back.freeze()?);
        }
        self.merged_through = Some(to);
        Ok(())
    }

    /// Builds the front anew; the back is empty then.
    fn turn(&mut self, panes: &mut Panes, (from, to): (i64, i64), all: &[Aggregate], picks: &[usize]) -> Result<()> {
        let own: Vec<usize> = (0..picks.len()).collect();
        (self.back, self.merged_through) = (None, Some(to));
        self.front.clear();
        for pane in panes.range(from, to).rev() {
            let (start, parts) = pane?;
            let mut merged = Groups::new(picked(all, picks))?;
            parts.iter().try_for_each(|part| merged.merge(part, picks))?;
            if let Some((_, later)) = self.front.last() {
                merged.merge(later, &own)?;
            }
            self.front.push((start, merged.freeze()?));
        }
        Ok(())
    }

    /// Tells that rows came for a pane; where it is merged already, the stacks are built anew.
    pub fn touch(&mut self, pane: i64) {
        if self.merged_through.is_some_and(|merged| pane < merged) {
            *self = Sliding::default();
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = u32> {
        let frozen = self.front.iter().map(|(_, frozen)| frozen).chain(&self.back);
        frozen.flat_map(|frozen| frozen.keys().iter().copied())
    }

    pub fn renumber(&mut self, renumbered: &[Option<u32>]) {
        let frozen = self.front.iter_mut().map(|(_, frozen)| frozen).chain(&mut self.back);
        frozen.for_each(|frozen| frozen.renumber(renumbered));
    }

    pub fn bytes(&self) -> usize {
        self.front.iter().map(|(_, frozen)| frozen).chain(&self.back).map(Frozen::bytes).sum()
    }
}

pub(super) fn picked<'a>(aggregates: &'a [Aggregate], picks: &'a [usize]) -> impl Iterator<Item = &'a Aggregate> {
    picks.iter().map(|&at| &aggregates[at])
}
