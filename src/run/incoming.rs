//! A record as the core takes it in, wherever it comes from.

use std::sync::Arc;

use crate::kafka::batch::{Batch, Message};
use crate::stream::watermark::PartitionKey;
use crate::telemetry::instruments::Input;

/// A record as it arrives: from Kafka, or from memory where the path is measured or simulated without it.
pub trait Incoming {
    fn topic(&self) -> &Arc<str>;
    fn partition(&self) -> i32;
    fn offset(&self) -> i64;
    /// Milliseconds since the epoch, as the producer or the broker set it.
    fn timestamp_ms(&self) -> Option<i64>;
    fn key(&self) -> Option<&[u8]>;
    /// None is a tombstone.
    fn value(&self) -> Option<&[u8]>;
    fn headers(&self) -> Vec<(&str, Option<&[u8]>)>;
}

/// What records of one input there were in a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub records: u64,
    /// Of these, those that were decoded in full.
    pub decoded: u64,
    pub bytes: u64,
}

impl Tally {
    pub fn tell(self, counters: &Input, input: &str) {
        counters.consumed(input, self.records, self.bytes);
        counters.decoded(input, self.decoded);
    }
}

/// Records that arrive together.
pub trait Records {
    fn iter(&self) -> impl Iterator<Item = impl Incoming>;
}

impl Records for Batch {
    fn iter(&self) -> impl Iterator<Item = impl Incoming> {
        Batch::iter(self)
    }
}

impl Incoming for Message<'_> {
    fn topic(&self) -> &Arc<str> {
        Message::topic(self)
    }

    fn partition(&self) -> i32 {
        Message::partition(self)
    }

    fn offset(&self) -> i64 {
        Message::offset(self)
    }

    fn timestamp_ms(&self) -> Option<i64> {
        Message::timestamp_ms(self)
    }

    fn key(&self) -> Option<&[u8]> {
        Message::key(self)
    }

    fn value(&self) -> Option<&[u8]> {
        Message::value(self)
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        Message::headers(self)
    }
}

/// A record of which only its place is known.
pub(super) struct Unreadable<'a> {
    pub at: &'a PartitionKey,
    pub offset: i64,
}

impl Incoming for Unreadable<'_> {
    fn topic(&self) -> &Arc<str> {
        &self.at.0
    }

    fn partition(&self) -> i32 {
        self.at.1
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn timestamp_ms(&self) -> Option<i64> {
        None
    }

    fn key(&self) -> Option<&[u8]> {
        None
    }

    fn value(&self) -> Option<&[u8]> {
        None
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        Vec::new()
    }
}
