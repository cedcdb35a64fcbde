//! The wall clock: read here, for arrivals and idleness, and nowhere else in the program.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::time::EventTime;

/// Returns the time of day, as an event time.
pub fn now() -> EventTime {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime::from_micros(now.as_micros() as i64)
}
