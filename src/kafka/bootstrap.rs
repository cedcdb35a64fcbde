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

/// How often a client is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// Watches over what one client knows of its cluster.
pub(super) struct Bootstrap {
    role: &'static str,
    brokers: CString,
    knew_any: bool,
    looked_at: Instant,
}

impl Bootstrap {
    /// `brokers`: those of the settings, separated by commas.
    pub(super) fn new(role: &'static str, brokers: &str) -> Bootstrap {
        Bootstrap { role, brokers: name(brokers), knew_any: false, looked_at: Instant::now() }
    }

    /// Gives a client the brokers of the settings again, once it has lost all that it learned. Asks no broker.
    pub(super) fn mend(&mut self, client: *mut ffi::rd_kafka_t) {
        if self.looked_at.elapsed() < INTERVAL {
            return;
        }
        self.looked_at = Instant::now();
        let knows_any = knows_any(client);
        if self.knew_any && !knows_any {
            warn!(role = self.role, "the kafka cluster named no broker; going back to those of the settings");
            // SAFETY: the client and the names are alive over the call, which copies the names.
            unsafe { ffi::rd_kafka_brokers_add(client, self.brokers.as_ptr()) };
        }
        // Added once: from there librdkafka goes on by itself, as it did at its start.
        self.knew_any = knows_any;
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
