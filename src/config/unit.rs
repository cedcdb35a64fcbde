//! Durations and sizes as people type them: `"5s"`, `"512MiB"`. Parsing and printing only.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The `format` of a [`Span`] in the JSON Schema.
pub(super) const SPAN_FORMAT: &str = "humantime-duration";
/// The `format` of a [`Size`] in the JSON Schema.
pub(super) const SIZE_FORMAT: &str = "byte-size";

/// What a [`Span`] looks like: one to eight whole numbers, each with a unit. humantime takes fractions of some units
/// and refuses them of others, so that none is the simpler rule.
const SPAN_PATTERN: &str = "^[0-9]{1,10} ?(ns|us|ms|s|m|min|h|d|w)( ?[0-9]{1,10} ?(ns|us|ms|s|m|min|h|d|w)){0,7}$";
/// What a [`Size`] looks like.
const SIZE_PATTERN: &str = "^[0-9]{1,15} ?(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)$";

/// Longest duration: about a hundred years, so that sums with any event time stay in range.
const SPAN_MAX: Duration = Duration::from_secs(36_525 * 86_400);

/// A duration, typed as text with a unit: `"200ms"`, `"5s"`, `"1h 30m"`, `"400d"`. Zero to 36525 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

/// A number of bytes, typed as text with a unit: `"4096B"`, `"512MiB"`, `"1GB"`. Zero to 2^63 - 1 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// A text that is no [`Span`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration such as \"30s\", \"5m\" or \"1h 30m\", up to 36525d")]
pub struct SpanError;

/// A text that is no [`Size`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a size such as \"512KiB\", \"64MiB\" or \"1GB\", below 8388608TiB")]
pub struct SizeError;

impl Span {
    pub const fn from_millis(millis: u64) -> Self {
        Span(Duration::from_millis(millis))
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Size {
    pub const fn from_mib(mebibytes: u32) -> Self {
        Size((mebibytes as u64) << 20)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        // humantime also takes months and years of a mean length, which nobody means in a setting, and it panics where
        // the seconds' sum meets u64::MAX; shape and length are therefore checked before it sees the text.
        if !has_span_shape(text) {
            return Err(SpanError);
        }
        let duration = humantime::parse_duration(text).map_err(|_| SpanError)?;
        if duration > SPAN_MAX { Err(SpanError) } else { Ok(Span(duration)) }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let (_, scale) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or(SizeError)?;
        if digits > 15 {
            return Err(SizeError);
        }
        let number: u64 = number.parse().map_err(|_| SizeError)?;
        match number.checked_mul(*scale) {
            Some(bytes) if bytes <= i64::MAX as u64 => Ok(Size(bytes)),
            _ => Err(SizeError),
        }
    }
}

impl fmt::Display for Span {
    /// One number in the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        let whole = SPAN_UNITS.iter().find(|(_, scale)| nanos.is_multiple_of(*scale));
        let (unit, scale) = whole.expect("the last unit is one nanosecond, which divides all");
        write!(f, "{}{unit}", nanos / scale)
    }
}

impl fmt::Display for Size {
    /// One number in the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0B");
        }
        let whole = SIZE_UNITS.iter().find(|(_, scale)| self.0.is_multiple_of(*scale));
        let (unit, scale) = whole.expect("the last unit is one byte, which divides all");
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": SPAN_FORMAT, "pattern": SPAN_PATTERN })
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": SIZE_FORMAT, "pattern": SIZE_PATTERN })
    }
}

/// Units a duration is printed in, largest first, with their nanoseconds.
const SPAN_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Units of a size, largest first, with their bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Tells whether a text is one to eight numbers, each with a unit, as [`SPAN_PATTERN`] says.
fn has_span_shape(text: &str) -> bool {
    let mut rest = text;
    for n in 0..8 {
        if n > 0 {
            rest = rest.strip_prefix(' ').unwrap_or(rest);
        }
        let Some(after) = after_span_term(rest) else { return false };
        if after.is_empty() {
            return true;
        }
        rest = after;
    }
    false
}

/// Returns what follows a number and its unit at the start of `text`; `None` where there is no such start.
fn after_span_term(text: &str) -> Option<&str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = text.split_at(digits).1;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (unit, rest) = rest.split_at(letters);
    let is_unit = matches!(unit, "ns" | "us" | "ms" | "s" | "m" | "min" | "h" | "d" | "w");
    ((1..=10).contains(&digits) && is_unit).then_some(rest)
}
