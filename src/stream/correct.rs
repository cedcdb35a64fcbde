//! Corrections: which windows of a view lack a row that came too late, and those windows computed anew, out of stored rows,
//! by an engine that does nothing else. Reads no store, and changes no running view.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::plan::Origin;
use super::view::{Kind, View};
use super::{Engine, StreamError};
use crate::model::time::{EventTime, Span};
use crate::query::{REVISION, WITHDRAWN};

/// Notes of which views rows are told that came too late for some of their windows: of those that are corrected and all
/// that they read.
///
/// # Errors
/// A corrected view with a column of a name that its versions need.
pub(super) fn prepare(views: &mut [View]) -> Result<(), StreamError> {
    let corrected: Vec<&View> = views.iter().filter(|view| view.definition.correct_every.is_some()).collect();
    let mut told: BTreeSet<String> = BTreeSet::new();
    for view in corrected {
        if let Some(field) =
            view.schema().fields().iter().find(|field| [REVISION, WITHDRAWN].contains(&&**field.name()))
        {
            let message =
                format!("a corrected view has a column {:?} already (hint: call its own otherwise)", field.name());
            return Err(StreamError::Unsupported { file: view.definition.file.clone(), message });
        }
        told.insert(view.definition.name.to_string());
    }
    for view in views.iter_mut().rev() {
        view.tells_partly_late = told.contains(&*view.definition.name);
        if view.tells_partly_late {
            told.extend(view.definition.reads.iter().cloned());
        }
    }
    Ok(())
}

impl Engine {
    /// Tells whether a row that came too late for a view, by number, which had closed so far then, did for all its windows.
    pub fn was_late_for_all(&self, number: usize, ts: EventTime, closed_through: EventTime) -> bool {
        let view = self.views.get(number);
        // A session is never one of several.
        view.is_none_or(|view| {
            view.definition.window.gap() > 0 || view.all_end_by(ts.as_micros(), closed_through.as_micros())
        })
    }

    /// Returns the windows of the last view that may lack a row which came too late for `late`, one that it reads or itself:
    /// those the row belongs to, and those of functions that look back to them. In order; windows that had the row, or are
    /// open still, are among them.
    pub fn missed(&self, late: &str, ts: EventTime) -> Vec<Span> {
        let mut missed: Vec<BTreeSet<Span>> = Vec::with_capacity(self.views.len());
        for view in &self.views {
            let window = view.definition.window;
            let mut own: BTreeSet<Span> = BTreeSet::new();
            if &*view.definition.name == late {
                own.extend(window.holding(ts));
            }
            for input in self.inputs_of(view) {
                match view.definition.windowed_on {
                    Some(_) => own.extend(missed[input].iter().flat_map(|of| window.holding(of.start))),
                    None => own.extend(&missed[input]),
                }
            }
            let looks_back = view.looks_back();
            if !looks_back.is_zero()
                && let (Some(first), Some(last)) = (own.first().copied(), own.last().copied())
            {
                let mut end = first.end + window.slide();
                while end <= last.end + looks_back {
                    own.insert(window.ending(end));
                    end = end + window.slide();
                }
            }
            missed.push(own);
        }
        missed.pop().unwrap_or_default().into_iter().collect()
    }

    /// Returns the views that a view reads, by number.
    pub(super) fn inputs_of(&self, view: &View) -> Vec<usize> {
        match &view.kind {
            Kind::PerWindow { inputs, .. } => inputs.iter().map(|input| input.view).collect(),
            Kind::Windowed { aggregation, .. } => match self.aggregations[*aggregation].origin {
                Origin::View(input) => vec![input],
                Origin::Source(_) => Vec::new(),
            },
        }
    }

    /// Makes a new engine begin with a window of its last view. Returns how far beyond the last window wanted its sources
    /// must be read and settled: windows of what that view reads may reach as far.
    pub fn begin_with(&mut self, first: Span) -> Duration {
        let mut needed: BTreeMap<usize, EventTime> = BTreeMap::new();
        let mut beyond = Duration::ZERO;
        for number in (0..self.views.len()).rev() {
            let through = match needed.get(&number) {
                Some(needed) => *needed,
                None => EventTime::from_micros(first.end.as_micros() - 1),
            };
            self.views[number].resume(through);
            let from = self.views[number].needs_from();
            for input in self.inputs_of(&self.views[number]) {
                needed.entry(input).and_modify(|needed| *needed = (*needed).min(from)).or_insert(from);
                beyond += self.views[input].definition.window.reach();
            }
        }
        beyond
    }
}
