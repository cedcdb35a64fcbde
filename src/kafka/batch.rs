//! A batch of messages as librdkafka holds them, read in place without a copy, and the queue it is taken from.
//!
//! The safe interface hands out one message per call at about ten times the cost; this is the one place that goes
//! around it. Never looks into a payload.

use std::ffi::CStr;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as ffi;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::native::{Native, bytes, name, text};
use super::source::Member;

/// Messages of possibly many partitions; those of one partition are in the order of their offsets, which rise but need
/// not be contiguous. Keeps the consumer's memory alive until dropped.
pub struct Batch {
    // Dropped in this order: the messages must go before the client that made them.
    entries: Vec<Entry>,
    topics: Arc<[Arc<str>]>,
    _member: Arc<Member>,
}

struct Entry {
    received: Received,
    topic: usize,
}

/// One message of a [`Batch`].
#[derive(Clone, Copy)]
pub struct Message<'a> {
    entry: &'a Entry,
    topics: &'a [Arc<str>],
}

impl Batch {
    pub(super) fn new(member: Arc<Member>, topics: Arc<[Arc<str>]>, capacity: usize) -> Self {
        Batch { entries: Vec::with_capacity(capacity), topics, _member: member }
    }

    /// Adds a message of the topic at `topic` in this batch's list.
    pub(super) fn push(&mut self, received: Received, topic: usize) {
        debug_assert!(topic < self.topics.len(), "a message's topic is one of the batch's");
        self.entries.push(Entry { received, topic });
    }

    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells whether there is no message; a batch from the source always has one.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the topics that [`Message::topic_index`] counts. An index keeps its meaning over all batches of a
    /// source; later batches may know more topics.
    pub fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// Iterates over the messages.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Message<'_>> {
        self.entries.iter().map(|entry| Message { entry, topics: &self.topics })
    }
}

impl<'a> Message<'a> {
    /// Returns the place of the message's topic in [`Batch::topics`].
    pub fn topic_index(&self) -> usize {
        self.entry.topic
    }

    /// Returns the message's topic.
    pub fn topic(&self) -> &'a Arc<str> {
        self.topics.get(self.entry.topic).expect("`push` takes an index into this very list, which never shrinks")
    }

    pub fn partition(&self) -> i32 {
        self.entry.received.message().partition
    }

    pub fn offset(&self) -> i64 {
        self.entry.received.message().offset
    }

    /// Returns the message's time in milliseconds since the epoch, as its producer or the broker set it.
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive, and `kind` outlives the call.
        let at = unsafe { ffi::rd_kafka_message_timestamp(self.entry.received.as_ptr(), &mut kind) };
        (kind != ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && at >= 0).then_some(at)
    }

    /// Returns the key; `None` where the producer set none.
    pub fn key(&self) -> Option<&'a [u8]> {
        let message = self.entry.received.message();
        // SAFETY: the key belongs to the message, which the batch keeps over `'a`.
        unsafe { bytes(message.key.cast(), message.key_len) }
    }

    /// Returns the value; `None` is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        let message = self.entry.received.message();
        // SAFETY: the value belongs to the message, which the batch keeps over `'a`.
        unsafe { bytes(message.payload.cast(), message.len) }
    }

    /// Returns the headers in their order; parsed by this call only. A name that is not UTF-8, which the protocol
    /// forbids, reads as U+FFFD.
    pub fn headers(&self) -> Vec<(&'a str, Option<&'a [u8]>)> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is alive. The call parses and caches inside the message, which no other thread can be
        // doing: a batch is not `Sync`.
        let found = unsafe { ffi::rd_kafka_message_headers(self.entry.received.as_ptr(), &mut headers) };
        if Code::from(found) != Code::NoError || headers.is_null() {
            return Vec::new();
        }
        let mut all = Vec::new();
        loop {
            let (mut key, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: `headers` belongs to the message and lives as long; the three outputs outlive the call.
            let found = unsafe { ffi::rd_kafka_header_get_all(headers, all.len(), &mut key, &mut value, &mut size) };
            if Code::from(found) != Code::NoError || key.is_null() {
                return all;
            }
            // SAFETY: the name, NUL-terminated, and the value of that size live as long as the message.
            let (key, value) = unsafe { (CStr::from_ptr(key), bytes(value.cast(), size)) };
            all.push((key.to_str().unwrap_or("\u{fffd}"), value));
        }
    }
}

/// A message, or an event about a partition, owned.
#[repr(transparent)]
pub(super) struct Received(NonNull<ffi::rd_kafka_message_t>);

// SAFETY: a message is a heap object whose shared parts (topic, fetch buffer) are counted atomically; librdkafka allows
// it to be read and destroyed on any thread. It is not `Sync`: reading headers writes to it.
unsafe impl Send for Received {}

impl Received {
    fn message(&self) -> &ffi::rd_kafka_message_t {
        // SAFETY: the message is alive until `drop`.
        unsafe { self.0.as_ref() }
    }

    fn as_ptr(&self) -> *const ffi::rd_kafka_message_t {
        self.0.as_ptr()
    }

    /// Returns what this is: `NoError` for a message, else the event.
    pub(super) fn code(&self) -> Code {
        self.message().err.into()
    }

    /// Returns the address of the topic object, equal for all messages of one topic while any partition of it is held.
    pub(super) fn topic_key(&self) -> usize {
        self.message().rkt as usize
    }

    pub(super) fn topic_name(&self) -> String {
        if self.message().rkt.is_null() {
            return String::new();
        }
        // SAFETY: the message holds a reference to its topic.
        unsafe { text(ffi::rd_kafka_topic_name(self.message().rkt)) }
    }

    pub(super) fn partition(&self) -> i32 {
        self.message().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.message().offset
    }

    /// Returns the words of an event that is an error.
    pub(super) fn reason(&self) -> String {
        // SAFETY: the message is alive; for an error it answers with a string of the message or a static one.
        unsafe { text(ffi::rd_kafka_message_errstr(self.as_ptr())) }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // SAFETY: owned since `Queue::take`, destroyed once.
        unsafe { ffi::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// A queue of our own, to which the queues of the assigned partitions are forwarded.
///
/// Taking from it serves messages and partition events only; rebalances stay on the consumer's own queue. (On that
/// one `rd_kafka_consume_batch_queue` would answer a rebalance with a silent unassign, as no callback is set.)
pub(super) struct Queue(Native<ffi::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are locked inside and may be used from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// Makes a queue of the client, which must outlive it.
    pub(super) fn new(client: *mut ffi::rd_kafka_t) -> Option<Self> {
        // SAFETY: `client` is alive; the new queue is ours to destroy.
        unsafe { Native::own(ffi::rd_kafka_queue_new(client), ffi::rd_kafka_queue_destroy) }.map(Queue)
    }

    /// Sends a partition's messages here; to be called before the partition is assigned. librdkafka marks the
    /// partition's queue as forwarded by the application, so that its own start of the fetcher leaves it alone; its
    /// stop at the end of an assignment takes the forward away.
    pub(super) fn forward(&self, client: *mut ffi::rd_kafka_t, topic: &str, partition: i32) {
        let topic = name(topic);
        // SAFETY: `client` is alive, the name lives over the call, and the queue handle is ours to destroy.
        let from = unsafe {
            let queue = ffi::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition);
            Native::own(queue, ffi::rd_kafka_queue_destroy)
        };
        if let Some(from) = from {
            // SAFETY: both queues are alive; each holds a reference of its own to what it needs.
            unsafe { ffi::rd_kafka_queue_forward(from.as_ptr(), self.0.as_ptr()) }
        }
    }

    /// Takes up to `max` messages: waits up to `wait` for the first and up to `linger` for the rest.
    ///
    /// One call with one timeout would hold back a lone message for all of it, as librdkafka returns early only when
    /// the batch is full.
    pub(super) fn take(&self, into: &mut Vec<Received>, max: usize, wait: Duration, linger: Duration) {
        debug_assert!(max > 0 && into.is_empty());
        into.reserve(max);
        self.fill(into, 1, wait);
        if !into.is_empty() && max > 1 {
            self.fill(into, max - 1, linger);
        }
    }

    fn fill(&self, into: &mut Vec<Received>, max: usize, timeout: Duration) {
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let room = into.spare_capacity_mut();
        let max = max.min(room.len());
        // SAFETY: `Received` is a non-null message pointer and nothing else, librdkafka writes up to `max` of those
        // into memory that is ours and large enough, and the count it returns have been written.
        unsafe {
            let start = room.as_mut_ptr().cast::<*mut ffi::rd_kafka_message_t>();
            let count = ffi::rd_kafka_consume_batch_queue(self.0.as_ptr(), timeout_ms, start, max);
            into.set_len(into.len() + usize::try_from(count).unwrap_or(0));
        }
    }
}
