//! Event time, the only clock downstream of decoding, and half-open spans of it. Never reads the wall clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// A point on the event-time axis: microseconds since the Unix epoch, UTC.
///
/// Microseconds because that is the resolution of a Delta timestamp; anything finer is truncated on the way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventTime(i64);

impl EventTime {
    pub const MIN: EventTime = EventTime(i64::MIN);
    pub const MAX: EventTime = EventTime(i64::MAX);

    /// Makes an event time of microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        EventTime(micros)
    }

    /// Returns the microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Makes an event time of seconds since the Unix epoch, truncated to microseconds.
    pub fn from_secs_f64(seconds: f64) -> Self {
        EventTime((seconds * 1e6) as i64)
    }

    /// Returns the seconds since the Unix epoch.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Reads an epoch number whose unit is told by its size: seconds below 1e11 (year 5138), milliseconds below 1e14,
    /// microseconds below 1e17, nanoseconds above.
    pub fn from_epoch_guess(n: i64) -> Self {
        match n.unsigned_abs() {
            0..100_000_000_000 => EventTime(n.saturating_mul(1_000_000)),
            100_000_000_000..100_000_000_000_000 => EventTime(n.saturating_mul(1_000)),
            100_000_000_000_000..100_000_000_000_000_000 => EventTime(n),
            _ => EventTime(n / 1_000),
        }
    }

    /// The same of a number with a fraction; `None` where it is not finite.
    pub fn from_epoch_guess_f64(n: f64) -> Option<Self> {
        match n.abs() {
            small if small < 1e11 => Some(EventTime::from_secs_f64(n)),
            large if large.is_finite() => Some(EventTime::from_epoch_guess(n as i64)),
            _ => None,
        }
    }

    /// Reads an RFC 3339 date and time; `None` where it is not one.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|t| EventTime(t.timestamp_micros()))
    }

    /// Returns the start of the `width`-wide slot that holds this time, slots being aligned to the Unix epoch.
    pub fn floor(self, width: Duration) -> Self {
        let width = micros(width).max(1);
        EventTime(self.0 - self.0.rem_euclid(width))
    }

    pub fn saturating_add(self, by: Duration) -> Self {
        EventTime(self.0.saturating_add(micros(by)))
    }

    pub fn saturating_sub(self, by: Duration) -> Self {
        EventTime(self.0.saturating_sub(micros(by)))
    }

    /// Returns how long after `earlier` this is; zero where it is not after.
    pub fn since(self, earlier: EventTime) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

/// Returns a duration in whole microseconds, capped at the range of `i64`.
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Add<Duration> for EventTime {
    type Output = EventTime;
    fn add(self, by: Duration) -> EventTime {
        self.saturating_add(by)
    }
}

impl Sub<Duration> for EventTime {
    type Output = EventTime;
    fn sub(self, by: Duration) -> EventTime {
        self.saturating_sub(by)
    }
}

impl fmt::Display for EventTime {
    /// RFC 3339 in UTC with as many fraction digits as needed; times out of the calendar's range print as microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(t) => f.write_str(&t.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            None => write!(f, "{}us", self.0),
        }
    }
}

/// Travels as an RFC 3339 string in every JSON record.
impl Serialize for EventTime {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventTime {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if let Some(micros) = text.strip_suffix("us").and_then(|n| n.parse().ok()) {
            return Ok(EventTime(micros));
        }
        EventTime::parse_rfc3339(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("expected an RFC 3339 time, got {text:?}")))
    }
}

/// A half-open stretch of event time, `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    pub start: EventTime,
    pub end: EventTime,
}

impl Span {
    pub fn new(start: EventTime, end: EventTime) -> Self {
        debug_assert!(start <= end, "a span must not end before it starts");
        Span { start, end }
    }

    pub fn contains(&self, at: EventTime) -> bool {
        self.start <= at && at < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_is_aligned_to_the_epoch_on_both_sides_of_it() {
        let minute = Duration::from_secs(60);
        assert_eq!(EventTime::from_micros(61_000_000).floor(minute).as_micros(), 60_000_000);
        assert_eq!(EventTime::from_micros(-1).floor(minute).as_micros(), -60_000_000);
    }

    #[test]
    fn the_unit_of_an_epoch_number_is_told_by_its_size() {
        let at = EventTime::parse_rfc3339("2026-01-02T03:04:05Z").map(|t| t.as_micros()).unwrap_or_default();
        for n in [at / 1_000_000, at / 1_000, at, at * 1_000] {
            assert_eq!(EventTime::from_epoch_guess(n).as_micros(), at);
        }
    }

    #[test]
    fn text_round_trips() {
        for micros in [0, 1, -1, 1_767_323_045_000_001, i64::MAX] {
            let at = EventTime::from_micros(micros);
            let json = serde_json::to_string(&at).unwrap();
            assert_eq!(serde_json::from_str::<EventTime>(&json).unwrap(), at);
        }
    }
}
