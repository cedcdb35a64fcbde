//! The few pieces of librdkafka's C interface that the safe one lacks, each behind an owner or a copy. Holds no state
//! and takes no decision.

use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as ffi;
use rdkafka::error::RDKafkaErrorCode as Code;

/// A C object with its destructor.
pub(super) struct Native<T> {
    object: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Native<T> {
    /// Takes over a C object; `None` where the pointer is null.
    ///
    /// # Safety
    /// `object` must be null or a live object that nobody else destroys and that `destroy` ends.
    pub(super) unsafe fn own(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        NonNull::new(object).map(|object| Native { object, destroy })
    }

    pub(super) fn as_ptr(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Native<T> {
    fn drop(&mut self) {
        // SAFETY: `own` demands that the object lives until here and that this is its destructor.
        unsafe { (self.destroy)(self.object.as_ptr()) }
    }
}

/// One entry of a partition list, copied out.
pub(super) struct Element {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub metadata: String,
    pub error: Code,
}

/// Copies a partition list out of C.
///
/// The safe interface panics on metadata that is not UTF-8, and any client of the group may have written that.
pub(super) fn elements(list: &TopicPartitionList) -> Vec<Element> {
    if list.count() == 0 {
        return Vec::new();
    }
    // SAFETY: the list is alive for the length of this call and `elems` holds `count` initialised entries, more than
    // none, so that it is not null.
    let entries = unsafe { std::slice::from_raw_parts((*list.ptr()).elems, list.count()) };
    let copy = |entry: &ffi::rd_kafka_topic_partition_t| {
        // SAFETY: the name and the metadata, with its size, belong to the entry.
        let (topic, metadata) =
            unsafe { (text(entry.topic), bytes(entry.metadata.cast(), entry.metadata_size).unwrap_or_default()) };
        let metadata = String::from_utf8_lossy(metadata).into_owned();
        Element { topic, partition: entry.partition, offset: entry.offset, metadata, error: entry.err.into() }
    };
    entries.iter().map(copy).collect()
}

/// Copies a C string; empty where the pointer is null.
///
/// # Safety
/// `string` must be null or NUL-terminated and alive.
pub(super) unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the rest is the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// Views C memory as bytes; `None` where the pointer is null.
///
/// # Safety
/// `start` must be null or point to `len` bytes that stay as they are over `'a`.
pub(super) unsafe fn bytes<'a>(start: *const u8, len: usize) -> Option<&'a [u8]> {
    // SAFETY: not null, and the rest is the caller's promise.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, len) })
}

/// Makes a C string of a name; one that holds a NUL, which no name of Kafka may, is cut there.
pub(super) fn name(name: &str) -> CString {
    let until_nul = name.split('\0').next().unwrap_or_default();
    CString::new(until_nul).expect("a text that was split at NUL holds none")
}
