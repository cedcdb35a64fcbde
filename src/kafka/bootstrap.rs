//! The way back to a cluster whose brokers librdkafka has forgotten. Holds no connection.
//!
//! A controller that has taken every broker for dead names none of them, and librdkafka drops all it knew at such an
//! answer, with the timer that would lead it back: <https://github.com/confluentinc/librdkafka/issues/5301>. A client
//! would then stay away for good, however healthy the cluster is again.

use std::ffi::CString;
use std::time::{Duration, Instant};

use rdkafka::bindings as ffi;
use tracing::warn;

use super::native::{Native, name};

/// How often a client is looked at, at first and at most.
const INTERVAL: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(8);

/// Watches over what one client knows of its cluster.
pub(super) struct Bootstrap {
    role: &'static str,
    brokers: CString,
    knew_any: bool,
    looked_at: Instant,
    interval: Duration,
}

impl Bootstrap {
    /// `brokers`: those of the settings, separated by commas.
    pub(super) fn new(role: &'static str, brokers: &str) -> Bootstrap {
        Bootstrap { role, brokers: name(brokers), knew_any: false, looked_at: Instant::now(), interval: INTERVAL }
    }

    /// Gives a client the brokers of the settings again, once it has lost all that it learned. Asks no broker.
    pub(super) fn mend(&mut self, client: *mut ffi::rd_kafka_t) {
        if self.looked_at.elapsed() < self.interval {
            return;
        }
        self.looked_at = Instant::now();
        if knows_any(client) {
            (self.knew_any, self.interval) = (true, INTERVAL);
        } else if self.knew_any {
            if self.interval == INTERVAL {
                warn!(role = self.role, "the kafka cluster named no broker; going back to those of the settings");
            }
            // Again and again, less and less often: a broker that is learned from the answer to another question takes
            // those of the settings along when it goes, and may come and go between two looks. Those that are still
            // there are found and kept.
            // SAFETY: the client and the names are alive over the call, which copies the names.
            unsafe { ffi::rd_kafka_brokers_add(client, self.brokers.as_ptr()) };
            // The client remembers every call, for as long as it lives.
            self.interval = (self.interval * 2).min(INTERVAL_MAX);
        }
    }
}

fn knows_any(client: *mut ffi::rd_kafka_t) -> bool {
    let mut count = 0;
    // SAFETY: the client is alive over the call; the list is the caller's to free, and may be null where it is empty.
    let ids = unsafe { Native::own(ffi::rd_kafka_brokers_learned_ids(client, &mut count), free) };
    drop(ids);
    count > 0
}

/// Frees what librdkafka allocated for its caller.
unsafe extern "C" fn free(ids: *mut i32) {
    // SAFETY: the pointer comes from librdkafka's own allocator, which this call belongs to; it needs no client.
    unsafe { ffi::rd_kafka_mem_free(std::ptr::null_mut(), ids.cast()) }
}
