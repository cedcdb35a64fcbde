//! What a running view does and why: its plan in words, how far it has come, and, where it has emitted nothing, what it
//! waits for. Reads the engine's state; changes nothing.

use serde::Serialize;

use super::plan::Origin;
use super::view::{Counts, Kind, View};
use super::watermark::PartitionKey;
use super::window::Window;
use super::{Engine, Source};
use crate::model::time::EventTime;

/// A running view, explained.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub view: String,
    pub description: String,
    pub file: String,
    /// What streams in: a source, or views.
    pub reads: Vec<String>,
    pub window: String,
    /// What is done with the rows, step by step.
    pub plan: Vec<String>,
    /// Views whose rows are aggregated in the same pass.
    pub shares_with: Vec<String>,
    /// Event time has come this far for the view, lateness taken off.
    pub watermark: Option<EventTime>,
    /// Windows that end at or before this are closed.
    pub closed_through: Option<EventTime>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Panes or sessions that are open, and the distinct keys known.
    pub open: usize,
    pub keys: usize,
    pub state_bytes: usize,
    /// In one sentence: what it did last, or what it waits for.
    pub state: String,
}

impl Engine {
    /// Explains every view.
    pub fn explain(&self) -> Vec<Explanation> {
        (0..self.views.len()).map(|number| self.explain_view(number)).collect()
    }

    fn explain_view(&self, number: usize) -> Explanation {
        let view = &self.views[number];
        let name = |number: usize| self.views[number].definition.name.to_string();
        let (mut plan, mut shares_with, mut open, mut bytes) = (Vec::new(), Vec::new(), (0, 0), view.history_bytes());
        let reads = match &view.kind {
            Kind::PerWindow { inputs, .. } => inputs.iter().map(|input| name(input.view)).collect(),
            Kind::Windowed { aggregation, .. } => {
                let aggregation = &self.aggregations[*aggregation];
                plan = aggregation.describe();
                shares_with = aggregation.members.iter().filter(|other| **other != number).map(|&v| name(v)).collect();
                open = aggregation.sizes();
                bytes += aggregation.bytes();
                vec![match aggregation.origin {
                    Origin::Source(Source::Metrics) => "metrics".to_owned(),
                    Origin::Source(Source::Events) => "events".to_owned(),
                    Origin::View(view) => name(view),
                }]
            }
        };
        plan.push(format!("per window: {}", view.definition.query));
        let known = |at: EventTime| (at > EventTime::MIN).then_some(at);
        Explanation {
            view: view.definition.name.to_string(),
            description: view.definition.description.clone(),
            file: view.definition.file.clone(),
            window: words(view.definition.window),
            plan,
            shares_with,
            watermark: known(EventTime::from_micros(view.watermark())),
            closed_through: known(view.closed_through()),
            counts: view.counts,
            open: open.0,
            keys: open.1,
            state_bytes: bytes,
            state: self.state(view, &reads),
            reads,
        }
    }

    /// Says why a view has emitted nothing, the first reason on a row's way; or that it has.
    fn state(&self, view: &View, reads: &[String]) -> String {
        let counts = view.counts;
        if counts.emitted_windows > 0 {
            return format!("has emitted {} windows", counts.emitted_windows);
        }
        if let Kind::PerWindow { .. } = view.kind {
            return format!("has emitted nothing: no window of {} has given it a row", reads.join(", "));
        }
        if counts.offered == 0 {
            let of = if reads.iter().any(|read| read == "metrics") { "its WHERE matches no series" } else { "no row" };
            return format!("has emitted nothing: {of} of what was read from {} so far", reads.join(", "));
        }
        if counts.rows == 0 && counts.late > 0 {
            return format!("has emitted nothing: all of {} rows came late (hint: raise its lateness)", counts.late);
        }
        if counts.rows == 0 {
            return format!("has emitted nothing: none of {} rows met its conditions", counts.offered);
        }
        if counts.emptied > 0 {
            return format!("has emitted nothing: {} windows closed and no row passed what follows", counts.emptied);
        }
        match self.holding(view) {
            Some(partition) => {
                let (topic, number) = partition;
                format!("waits for {topic}[{number}], which has given no row and is not idle yet")
            }
            None => {
                let lateness = humantime::format_duration(view.definition.lateness);
                format!("has open windows; one closes when event time is {lateness} past its end")
            }
        }
    }

    /// Returns a partition that keeps the source of a view from having a watermark.
    fn holding(&self, view: &View) -> Option<PartitionKey> {
        let Kind::Windowed { aggregation, .. } = &view.kind else { return None };
        match self.aggregations[*aggregation].origin {
            Origin::Source(Source::Metrics) => self.metrics.silent(),
            Origin::Source(Source::Events) => self.events.silent(),
            Origin::View(_) => None,
        }
    }
}

fn words(window: Window) -> String {
    let said = |duration| humantime::format_duration(duration).to_string();
    match window {
        Window::Hop { width, slide } if width == slide => format!("tumbling, {}", said(width)),
        Window::Hop { width, slide } => format!("{} wide, one every {}", said(width), said(slide)),
        Window::Session { gap, longest } => {
            format!("sessions, ended by {} of silence, at most {}", said(gap), said(longest))
        }
    }
}
