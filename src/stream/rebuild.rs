//! Restart: where each view stands, and its open windows again from what the store holds. Reads no store; says what is
//! needed and takes it in.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use datafusion::common::cast::as_timestamp_microsecond_array;

use super::plan::Origin;
use super::view::{self, Kind, View};
use super::{Emission, Engine, Source, StreamError};
use crate::model::batch::Samples;
use crate::model::series::{Interner, SeriesRef};
use crate::model::time::EventTime;

/// Rows of a view that another view needs to rebuild its open windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refill {
    /// The view that reads, by number.
    pub reader: usize,
    /// The view that is read.
    pub from_view: Arc<str>,
    /// From this time of a window's start on; `EventTime::MIN` where everything is needed.
    pub needs_from: EventTime,
}

/// A counted set.
#[derive(Clone, Debug)]
struct Bag<T>(HashMap<T, u32>);

impl<T> Default for Bag<T> {
    fn default() -> Self {
        Bag(HashMap::new())
    }
}

impl<T: Eq + Hash> Bag<T> {
    fn add(&mut self, one: T) {
        *self.0.entry(one).or_default() += 1;
    }

    /// Takes one out; tells whether there was one.
    fn take(&mut self, one: &T) -> bool {
        match self.0.get_mut(one) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }
}

/// Stored rows that came too late for a view when they came. Where windows that were emitted are needed again, to go on
/// from them, these rows must stay out of them again.
#[derive(Clone, Debug, Default)]
pub struct LateBefore {
    samples: BTreeMap<usize, Bag<(u32, i64, u64)>>,
    events: BTreeMap<usize, Bag<(String, i64)>>,
}

impl LateBefore {
    /// Notes a sample that was late for a view, by number.
    pub fn add_sample(&mut self, view: usize, series: SeriesRef, ts: EventTime, value: f64) {
        self.samples.entry(view).or_default().add((series.0, ts.as_micros(), value.to_bits()));
    }

    /// Notes an event that was late for a view, by number.
    pub fn add_event(&mut self, view: usize, id: String, ts: EventTime) {
        self.events.entry(view).or_default().add((id, ts.as_micros()));
    }
}

impl Engine {
    /// Takes up a view where its table stands: windows that end at or before `through` are never emitted again.
    pub fn resume(&mut self, view: &str, through: EventTime) {
        if let Some(view) = self.views.iter_mut().find(|v| &*v.definition.name == view) {
            view.resume(through);
        }
    }

    /// Returns from which time on rows of a source are needed to rebuild open windows, [`EventTime::MIN`] where everything
    /// is; none where nothing is to be rebuilt from it.
    pub fn needs_from(&self, source: Source) -> Option<EventTime> {
        let readers = self.aggregations.iter().filter(|aggregation| aggregation.is_rebuilding_from(source));
        let views = readers.flat_map(|aggregation| aggregation.members.iter().map(|&view| &self.views[view]));
        views.map(View::needs_from).min()
    }

    /// Returns the views, by name and number, for which [`LateBefore`] must be known from a time on.
    pub fn needs_late(&self) -> Vec<(Arc<str>, usize, EventTime)> {
        let again = self.views.iter().enumerate().filter(|(_, view)| view.rebuilding && view.needs_closed_windows());
        again.map(|(number, view)| (view.definition.name.clone(), number, view.needs_from())).collect()
    }

    /// Takes in stored samples.
    pub fn rebuild_from_samples(
        &mut self,
        samples: &Samples,
        interner: &Interner,
        late: &mut LateBefore,
    ) -> Result<(), StreamError> {
        self.extend_series(interner)?;
        self.routes.deal(&samples.series, &mut self.hands);
        for (aggregation, hand) in self.aggregations.iter_mut().zip(&mut self.hands) {
            let mut rows = std::mem::take(hand);
            if rows.is_empty() || !aggregation.rebuilding {
                continue;
            }
            if let Some(late) = late.samples.get_mut(&aggregation.members[0]) {
                rows.retain(|&row| {
                    let row = row as usize;
                    !late.take(&(samples.series[row], samples.ts[row], samples.value[row].to_bits()))
                });
            }
            let failed = self.views[aggregation.members[0]].failure();
            aggregation.push_samples(rows, samples, &mut self.views, &mut Vec::new()).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes in stored events, in the columns of the `events` table.
    pub fn rebuild_from_events(&mut self, events: &RecordBatch, late: &mut LateBefore) -> Result<(), StreamError> {
        let failed = |source| StreamError::Rows { source };
        let column = |name: &str| events.column_by_name(name).expect("events have a time and an id");
        let times = as_timestamp_microsecond_array(column("ts")).map_err(failed)?.values();
        let ids = column("id").as_string::<i32>();
        let readers = self.aggregations.iter_mut().filter(|one| one.is_rebuilding_from(Source::Events));
        for aggregation in readers {
            let (mut rows, mut ts) = (events.clone(), times.to_vec());
            if let Some(late) = late.events.get_mut(&aggregation.members[0]) {
                let taken_in = |row| !late.take(&(ids.value(row).to_owned(), times[row]));
                let keep: BooleanArray = (0..events.num_rows()).map(taken_in).map(Some).collect();
                rows = filter_record_batch(events, &keep).map_err(|error| failed(error.into()))?;
                ts = times.iter().zip(keep.values()).filter(|(_, keep)| *keep).map(|(ts, _)| *ts).collect();
            }
            let failed = self.views[aggregation.members[0]].failure();
            aggregation.push_rows(&rows, &ts, &mut self.views, &mut Vec::new()).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the rebuilding: what was emitted is over from now on, whatever the clocks say.
    pub fn rebuilt(&mut self) {
        // Partial states of others are never late: what they are told by here is how far the others have promised.
        let finishes = self.by_promises;
        self.views.iter_mut().for_each(|view| if finishes { view.rebuilding = false } else { view.rebuilt() });
        self.aggregations.iter_mut().for_each(|aggregation| aggregation.rebuilding = false);
    }

    /// Returns the views that are still to take up what is stored, and how far they are to be filled back where they have
    /// never emitted.
    pub fn rebuilding(&self) -> Vec<(Arc<str>, Duration)> {
        let rebuilding = self.views.iter().filter(|view| view.rebuilding);
        rebuilding.map(|view| (view.definition.name.clone(), view.definition.backfill)).collect()
    }

    /// Returns how far event time has come for a view that has seen nothing itself: by the clock of its source, or else by
    /// what the other views of its source have closed; none where nothing tells.
    pub fn frontier(&self, view: &str) -> Option<EventTime> {
        let number = self.views.iter().position(|one| &*one.definition.name == view)?;
        let of_others = || {
            let Kind::Windowed { aggregation, .. } = self.views[number].kind else { return None };
            let origin = self.aggregations[aggregation].origin;
            let others = self.aggregations.iter().filter(|other| other.origin == origin);
            let others = others.flat_map(|other| &other.members).map(|&member| &self.views[member]);
            let newest = |view: &View| view.closed_through() + view.definition.lateness;
            let begun = others.filter(|view| view.closed_through() > EventTime::MIN).map(newest);
            begun.max().map(|newest| newest - self.views[number].definition.lateness)
        };
        self.watermark(number).or_else(of_others)
    }

    /// Returns the time before which no row of a source is to come that a view which is being rebuilt could take in.
    pub fn settled_before(&self, source: Source) -> Option<EventTime> {
        let readers = self.aggregations.iter().filter(|aggregation| aggregation.is_rebuilding_from(source));
        readers.flat_map(|one| &one.members).map(|&view| self.frontier(&self.views[view].definition.name)).min()?
    }

    /// Closes, of the views that are being rebuilt from a source, the windows that end at or before a time: all stored
    /// rows before it were given.
    pub async fn settle(&mut self, source: Source, through: EventTime) -> Result<Vec<Emission>, StreamError> {
        self.close_all(|engine, number| {
            let view = &engine.views[number];
            match &view.kind {
                _ if !view.rebuilding => None,
                Kind::Windowed { aggregation, .. } if engine.aggregations[*aggregation].is_rebuilding_from(source) => {
                    Some(through)
                }
                Kind::Windowed { aggregation, .. } => match engine.aggregations[*aggregation].origin {
                    Origin::Source(_) => None,
                    Origin::View(_) => engine.watermark(number),
                },
                Kind::PerWindow { .. } => engine.watermark(number),
            }
        })
        .await
    }

    /// Returns which stored rows of views are needed, by which views, to rebuild their open windows.
    pub fn refills(&self) -> Vec<Refill> {
        let mut refills = Vec::new();
        for (reader, view) in self.views.iter().enumerate().filter(|(_, view)| view.rebuilding) {
            for input in self.inputs_of(view) {
                let from_view = self.views[input].definition.name.clone();
                refills.push(Refill { reader, from_view, needs_from: view.needs_from() });
            }
        }
        refills
    }

    /// Gives a view the rows of a window of another that it reads, as the store has them.
    pub fn refill(&mut self, refill: &Refill, emission: &Emission) -> Result<(), StreamError> {
        let Some(input) = self.views.iter().position(|view| view.definition.name == refill.from_view) else {
            return Ok(());
        };
        let Kind::Windowed { aggregation, .. } = self.views[refill.reader].kind else {
            self.views[refill.reader].take(input, emission);
            return Ok(());
        };
        let (rows, ts) = view::as_input(&emission.rows).map_err(|source| StreamError::Rows { source })?;
        let failed = self.views[refill.reader].failure();
        let aggregation = &mut self.aggregations[aggregation];
        // Rows of windows that were emitted come back as late here, which they are not.
        aggregation.push_rows(&rows, &ts, &mut self.views, &mut Vec::new()).map_err(failed)
    }
}
