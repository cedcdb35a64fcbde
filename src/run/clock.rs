//! The wall clock: read here, for arrivals and idleness, and nowhere else in the program.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::time::EventTime;

/// The clock of the core's thread: the wall's, or a simulated one.
pub trait Clock {
    /// Returns the time of day, as an event time.
    fn time_of_day(&self) -> EventTime;

    /// Returns the moment from which waits are measured.
    fn now(&self) -> Instant;

    /// Does nothing for as long.
    fn wait(&self, wait: Duration);
}

/// The clock on the wall.
#[derive(Clone, Copy)]
pub struct WallClock;

impl Clock for WallClock {
    fn time_of_day(&self) -> EventTime {
        now()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, wait: Duration) {
        thread::park_timeout(wait);
    }
}

/// Returns the time of day, as an event time.
pub fn now() -> EventTime {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(now.as_micros() as i64)
}

/// Returns the time of day, as seconds since the epoch.
pub fn now_secs() -> f64 {
    now().as_micros() as f64 / 1e6
}
