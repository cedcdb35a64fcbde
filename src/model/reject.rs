//! A record that could not be accepted, and why.

use super::time::EventTime;

/// Where a record came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Provenance {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// The class of a refusal: a stable word for counters and for the `reason` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No bytes at all where the format needs some.
    Empty,
    /// Not the syntax of its format.
    Syntax,
    /// A field of the wrong type.
    Type,
    /// A field that must be there is not.
    Missing,
    /// A number that is NaN or infinite.
    NotFinite,
    /// A time too far in the past or in the future.
    TimeRange,
    /// A name, label, payload or nesting over its limit.
    TooLarge,
    /// Bytes that are not UTF-8 where text must stand, or that do not unpack.
    Encoding,
    /// The limit on the number of series is reached.
    Cardinality,
    /// A value no one of the format's choices.
    Unsupported,
}

impl Reason {
    pub const ALL: [Reason; 10] = [
        Reason::Empty,
        Reason::Syntax,
        Reason::Type,
        Reason::Missing,
        Reason::NotFinite,
        Reason::TimeRange,
        Reason::TooLarge,
        Reason::Encoding,
        Reason::Cardinality,
        Reason::Unsupported,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::Syntax => "syntax",
            Reason::Type => "type",
            Reason::Missing => "missing",
            Reason::NotFinite => "not_finite",
            Reason::TimeRange => "time_range",
            Reason::TooLarge => "too_large",
            Reason::Encoding => "encoding",
            Reason::Cardinality => "cardinality",
            Reason::Unsupported => "unsupported",
        }
    }
}

/// A refusal: its class, and a sentence for the person who has to mend the producer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Reject {
    pub reason: Reason,
    pub message: String,
}

impl Reject {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Reject { reason, message: message.into() }
    }
}

/// A refused record, whole: the original bytes with where they came from and why they were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub from: Provenance,
    /// The broker's time of the record.
    pub at: EventTime,
    pub why: Reject,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}
