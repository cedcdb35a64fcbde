//! What decoding yields: samples in columns, events in rows.

use super::event::Event;
use super::series::SeriesRef;
use super::time::EventTime;

/// Samples as three parallel columns: the narrow shape in which they travel to the stream and the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    pub series: Vec<u32>,
    /// Event time, microseconds.
    pub ts: Vec<i64>,
    pub value: Vec<f64>,
}

impl Samples {
    pub fn push(&mut self, series: SeriesRef, at: EventTime, value: f64) {
        self.series.push(series.0);
        self.ts.push(at.as_micros());
        self.value.push(value);
    }

    pub fn len(&self) -> usize {
        self.series.len()
    }

    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    pub fn truncate(&mut self, len: usize) {
        self.series.truncate(len);
        self.ts.truncate(len);
        self.value.truncate(len);
    }

    pub fn clear(&mut self) {
        self.truncate(0);
    }
}

/// Where a decoder puts what it read. A record that fails half-way is taken back with [`Decoded::rewind`].
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    pub samples: Samples,
    pub events: Vec<Event>,
}

/// How far a [`Decoded`] was filled at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    samples: usize,
    events: usize,
}

impl Decoded {
    pub fn mark(&self) -> Mark {
        Mark { samples: self.samples.len(), events: self.events.len() }
    }

    pub fn rewind(&mut self, to: Mark) {
        self.samples.truncate(to.samples);
        self.events.truncate(to.events);
    }

    pub fn clear(&mut self) {
        self.samples.clear();
        self.events.clear();
    }
}
