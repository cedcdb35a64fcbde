//! The store's upkeep beside the running service, on a thread that gives way to everything else: small files are merged,
//! rows past their retention leave, and what nobody reads any more is deleted. A failure is told and tried again; it stops
//! nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::clock::{Clock as _, WallClock};
use super::corrector::Current;
use super::retention::{Keeper, Retention};
use super::service::chain;
use crate::store::{Eagerness, Store};
use crate::telemetry::Telemetry;

const VACUUM_INTERVAL: Duration = Duration::from_secs(3600);
/// How much the threads give way; 19 would be most.
const NICENESS: libc::c_int = 10;

#[derive(Clone, Debug)]
pub struct Settings {
    /// How often it is looked for merges.
    pub interval: Duration,
    pub retention: Retention,
    /// How long a file stays after it was taken out of its table.
    pub vacuum_after: Duration,
}

/// The thread at work; it ends when this is dropped.
pub struct Upkeep {
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts the thread, which works while `on_duty` says that this instance is the one to do so. `current`: what runs.
pub fn start(
    current: watch::Receiver<Arc<Current>>,
    store: Arc<Store>,
    telemetry: Telemetry,
    on_duty: Arc<AtomicBool>,
) -> Result<Upkeep> {
    let (stop, mut stopped) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_name("upkeep")
        .on_thread_start(give_way)
        .enable_all()
        .build()
        .context("failed to start the runtime of the upkeep")?;
    let thread = thread::Builder::new().name("upkeep".to_owned()).spawn(move || {
        let work = runtime.spawn(work(current, store, telemetry, on_duty));
        runtime.block_on(async {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
        // A merge that was under way leaves files that no commit names, for a vacuum to take.
        work.abort();
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
    Ok(Upkeep { stop, thread: Some(thread.context("failed to start the thread of the upkeep")?) })
}

/// Leaves the processor to threads that serve or read.
fn give_way() {
    // SAFETY: takes numbers alone; on Linux it is about the calling thread.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    if refused != 0 {
        debug!("the upkeep could not give way to other threads");
    }
}

async fn work(
    current: watch::Receiver<Arc<Current>>,
    store: Arc<Store>,
    telemetry: Telemetry,
    on_duty: Arc<AtomicBool>,
) {
    let (mut vacuumed, mut keeper) = (Instant::now(), Keeper::default());
    loop {
        let settings = current.borrow().settings.clone();
        tokio::time::sleep(settings.upkeep.interval).await;
        if !on_duty.load(Ordering::SeqCst) {
            continue;
        }
        // An import goes on beside a service that shares with nobody, too.
        if let Err(error) = store.refresh().await {
            warn!(error = chain(&error), "what others stored is shown later");
        }
        merge_due(&store, &telemetry, &on_duty).await;
        keeper.keep(&settings, &store).await;
        telemetry.store.set_files(store.held().iter().map(|held| held.files).sum());
        if vacuumed.elapsed() >= VACUUM_INTERVAL {
            vacuumed = Instant::now();
            match store.vacuum(settings.upkeep.vacuum_after, WallClock.time_of_day(), false).await {
                Ok(done) => info!(done.files, done.bytes, done.log_entries, "files that nobody reads any more deleted"),
                Err(error) => warn!(error = chain(&error), "files that nobody reads any more are deleted later"),
            }
        }
    }
}

async fn merge_due(store: &Store, telemetry: &Telemetry, on_duty: &AtomicBool) {
    for due in store.due(Eagerness::AsDue) {
        if !on_duty.load(Ordering::SeqCst) {
            return;
        }
        let begun = Instant::now();
        match store.merge(&due).await {
            Ok(Some(merged)) => {
                telemetry.store.merged();
                let took = begun.elapsed().as_millis();
                debug!(table = due.table(), files = merged.files_before, merged.rows, took, "files merged");
            }
            Ok(None) => debug!(table = due.table(), "another changed the files first"),
            Err(error) => warn!(table = due.table(), error = chain(&error), "files stay small for now"),
        }
    }
}
