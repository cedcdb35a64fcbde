//! Reload: what a new engine has in common with the one before goes on with its open windows, and the rest begins where
//! that one stands. Reads no store; what begins anew is rebuilt as after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::sync::Arc;

use super::aggregation::Aggregation;
use super::definition::Definition;
use super::plan::Origin;
use super::series::{self, Routes};
use super::view::{Kind, View};
use super::{Engine, SERIES_CHUNK, Source, StreamError};
use crate::model::series::Interner;

/// What became of the views, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// They go on as if nothing had happened.
    pub kept: BTreeSet<Arc<str>>,
    /// They mean the same, but share a pass with what does not or read it: their open windows are rebuilt.
    pub rebuilt: BTreeSet<Arc<str>>,
    /// They begin with the first window that the view of their name had not closed.
    pub changed: BTreeSet<Arc<str>>,
    pub new: BTreeSet<Arc<str>>,
    pub gone: BTreeSet<Arc<str>>,
}

impl Definition {
    /// Tells whether the same rows give the same windows.
    fn means_the_same(&self, other: &Definition) -> bool {
        let meaning = |of: &Definition| (of.window, of.windowed_on.clone(), of.lateness, of.lookback, of.query.clone());
        meaning(self) == meaning(other)
    }
}

impl Engine {
    /// Takes over the clocks of the engine before, and the open windows of every view that means the same, reads the same
    /// and shares its pass with the same.
    pub fn adopt(&mut self, mut old: Engine, interner: &Interner) -> Result<Adopted, StreamError> {
        (self.metrics, self.events) = (take(&mut old.metrics), take(&mut old.events));
        let kept = self.kept(&old);
        let mut passes: Vec<Option<Aggregation>> = take(&mut old.aggregations).into_iter().map(Some).collect();
        let mut routed = BTreeMap::new();
        let names: BTreeMap<Arc<str>, usize> =
            old.views.iter().zip(0..).map(|(view, number)| (view.definition.name.clone(), number)).collect();
        let mut adopted = Adopted::default();
        for (number, kept) in kept.into_iter().enumerate() {
            let same = self.is_same(number, &old);
            let view = &mut self.views[number];
            let name = view.definition.name.clone();
            let Some(&before) = names.get(&name) else {
                adopted.new.insert(name);
                continue;
            };
            if !kept {
                view.resume(old.views[before].closed_through());
                match same {
                    true => adopted.rebuilt.insert(name),
                    false => adopted.changed.insert(name),
                };
                continue;
            }
            if let (&Kind::Windowed { aggregation: to, .. }, &Kind::Windowed { aggregation: from, .. }) =
                (&view.kind, &old.views[before].kind)
                && let Some(pass) = passes[from].take()
            {
                self.aggregations[to].adopt(pass);
                routed.insert(to, from);
            }
            view.adopt(&mut old.views[before]);
            adopted.kept.insert(name);
        }
        adopted.gone = names.into_keys().filter(|name| !self.has(name)).collect();
        self.route_as_before(&old.routes, &routed, interner)?;
        Ok(adopted)
    }

    fn has(&self, name: &str) -> bool {
        self.views.iter().any(|view| *view.definition.name == *name)
    }

    /// Tells of each view whether it can go on with the open windows it has in the engine before.
    fn kept(&self, old: &Engine) -> Vec<bool> {
        let mut kept: Vec<bool> = Vec::with_capacity(self.views.len());
        for (number, view) in self.views.iter().enumerate() {
            let same = match &view.kind {
                Kind::PerWindow { inputs, .. } => {
                    self.is_same(number, old) && inputs.iter().all(|input| kept[input.view])
                }
                Kind::Windowed { aggregation, .. } => {
                    let pass = &self.aggregations[*aggregation];
                    let reads_the_same = match pass.origin {
                        Origin::Source(_) => true,
                        Origin::View(input) => kept[input],
                    };
                    reads_the_same
                        && pass.members.iter().all(|&member| self.is_same(member, old))
                        && old.passes_of(&view.definition.name) == self.passes_of(&view.definition.name)
                }
            };
            kept.push(same);
        }
        kept
    }

    /// Tells whether a view means what the view of its name means in another engine, and finds the same dimension tables.
    fn is_same(&self, number: usize, other: &Engine) -> bool {
        let mine = &self.views[number].definition;
        let theirs = other.views.iter().map(|view| &view.definition).find(|theirs| theirs.name == mine.name);
        let tables = |of: &Engine| -> Vec<_> {
            of.dimensions.iter().filter(|table| mine.reads.contains(&table.name)).cloned().collect()
        };
        theirs.is_some_and(|theirs| mine.means_the_same(theirs)) && tables(self) == tables(other)
    }

    /// Returns the views that are aggregated in one pass with a view, in the order of their aggregates.
    fn passes_of(&self, view: &str) -> Option<Vec<Arc<str>>> {
        let pass = self.aggregations.iter().map(|pass| self.names(&pass.members));
        pass.into_iter().find(|names| names.iter().any(|name| **name == *view))
    }

    fn names(&self, views: &[usize]) -> Vec<Arc<str>> {
        views.iter().map(|&view| self.views[view].definition.name.clone()).collect()
    }

    /// Routes the series known so far: to passes that were taken over as before, to others by what they want. `routed` has,
    /// by the number of a pass here, its number before.
    fn route_as_before(
        &mut self,
        before: &Routes,
        routed: &BTreeMap<usize, usize>,
        interner: &Interner,
    ) -> Result<(), StreamError> {
        while self.routes.len() < before.len() {
            let from = self.routes.len();
            let chunk = from..before.len().min(from + SERIES_CHUNK);
            let rows =
                series::columns(interner.range(chunk.clone())).map_err(|source| StreamError::Series { source })?;
            let mut wanted = Vec::new();
            for (number, aggregation) in self.aggregations.iter_mut().enumerate() {
                if aggregation.origin != Origin::Source(Source::Metrics) {
                    continue;
                }
                let failed = self.views[aggregation.members[0]].failure();
                let wants = match routed.get(&number) {
                    Some(&old) => before.wants(old as u16, chunk.clone()),
                    None => aggregation.extend_series(&rows).map_err(failed)?,
                };
                wanted.push((number as u16, wants));
            }
            self.routes.extend(chunk.len(), &wanted);
        }
        Ok(())
    }
}

impl View {
    /// Goes on where another view of the same meaning stands.
    fn adopt(&mut self, old: &mut View) {
        self.stand_where(old);
        match (&mut self.kind, &mut old.kind) {
            (Kind::Windowed { history, .. }, Kind::Windowed { history: old, .. }) => *history = take(old),
            (Kind::PerWindow { inputs, .. }, Kind::PerWindow { inputs: old, .. }) => {
                for (input, old) in inputs.iter_mut().zip(old) {
                    input.history = take(&mut old.history);
                }
            }
            _ => unreachable!("views of one meaning are of one kind"),
        }
    }
}
