//! Fault 20: the disk is full at every call in turn. Nothing is lost, nothing is doubled, the error says that a later try
//! may succeed, and with room again the next commit goes through by itself and leaves no litter.

use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::simulated_disk::{Call, SimulatedDisk};
use super::*;

/// Makes the calls of this range fail, counted from now on; a full disk still lets files be removed.
fn fill(disk: &SimulatedDisk, full: Range<usize>) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    disk.fail(move |call, _| {
        let fails = call != Call::Remove && full.contains(&counted.fetch_add(1, Ordering::SeqCst));
        fails.then(|| Error::from(ErrorKind::StorageFull))
    });
    calls
}

struct Writer {
    _top: tempfile::TempDir,
    folder: PathBuf,
    disk: Arc<SimulatedDisk>,
    store: Store,
}

/// A store with the rows 0..3 committed and 3..9 appended.
async fn writer() -> Writer {
    let top = tempfile::tempdir().unwrap();
    let folder = top.path().join("data");
    let disk = Arc::new(SimulatedDisk::default());
    let store = open_on(&folder, pair(), disk.clone()).await.unwrap();
    append_pair(&store, 0..3, "a");
    store.commit().await.unwrap();
    append_pair(&store, 3..9, "a");
    Writer { _top: top, folder, disk, store }
}

/// Tries once, and looks at what an error leaves.
async fn try_commit(writer: &Writer) -> bool {
    let done = writer.store.commit().await;
    if let Err(error) = &done {
        assert!(error.retriable(), "{error:?}");
        assert!(writer.store.head_rows() > 0, "rows that were not committed are still held");
    }
    for table in ["t", "u"] {
        assert_eq!(all(writer.store.pin(), table).await, (0..9).collect::<Vec<_>>(), "{table} after {done:?}");
    }
    done.is_ok()
}

/// All is there once, for this process and for the next, and nothing beside it.
async fn check_whole(writer: Writer) {
    assert_eq!(writer.store.head_rows(), 0);
    assert_eq!(std::fs::read_dir(writer.folder.join(".staging")).unwrap().count(), 0, "half-written files stay");
    // Three days a commit in t, one file a commit in u.
    assert_eq!(parquet_files(&writer.folder.join("t")).len(), 6, "copies of files stay");
    assert_eq!(parquet_files(&writer.folder.join("u")).len(), 2, "copies of files stay");
    let Writer { _top, folder, store, .. } = writer;
    drop(store);
    let settings = Settings { url: folder.display().to_string(), ..Settings::default() };
    let store = Store::open(&settings, pair()).await.unwrap();
    for table in ["t", "u"] {
        assert_eq!(store.position(table, "a").await.unwrap(), Some(9));
        assert_eq!(all(store.pin(), table).await, (0..9).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn fault_20_a_disk_full_for_one_call_costs_a_try() {
    let mut refused = 0;
    for which in 0.. {
        let writer = writer().await;
        let calls = fill(&writer.disk, which..which + 1);
        if !try_commit(&writer).await {
            refused += 1;
            assert!(try_commit(&writer).await, "with room again the next commit goes through");
        }
        let reached = calls.load(Ordering::SeqCst) > which;
        check_whole(writer).await;
        if !reached {
            assert!(which > 15 && refused > 5, "{which} calls, {refused} commits refused");
            return;
        }
    }
}

#[tokio::test]
async fn fault_20_a_disk_that_stays_full_holds_commits_up_and_no_longer() {
    for which in 0.. {
        let writer = writer().await;
        let calls = fill(&writer.disk, which..usize::MAX);
        let first = try_commit(&writer).await;
        if !first {
            for _ in 0..3 {
                assert!(!try_commit(&writer).await, "a full disk takes nothing");
            }
            writer.disk.heal();
            assert!(try_commit(&writer).await);
        }
        let reached = calls.load(Ordering::SeqCst) > which;
        check_whole(writer).await;
        if !reached {
            assert!(first && which > 15, "{which} calls");
            return;
        }
    }
}

#[tokio::test]
async fn fault_20_a_disk_full_at_the_start_is_told_and_the_next_start_succeeds() {
    for which in 0.. {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("srv/data");
        let disk = Arc::new(SimulatedDisk::default());
        let calls = fill(&disk, which..usize::MAX);
        let opened = open_on(&folder, pair(), disk.clone()).await;
        if let Err(error) = &opened {
            let chain = format!("{error}: {:?}", std::error::Error::source(error));
            assert!(chain.contains("StorageFull"), "{chain}");
        }
        drop(opened);
        disk.heal();
        let store = open_on(&folder, pair(), disk).await.unwrap();
        append_pair(&store, 0..3, "a");
        store.commit().await.unwrap();
        assert_eq!(all(store.pin(), "t").await, [0, 1, 2]);
        if calls.load(Ordering::SeqCst) <= which {
            assert!(which > 15, "{which} calls");
            return;
        }
    }
}

#[tokio::test]
async fn half_written_files_of_a_killed_process_are_taken_away_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder).await);
    let left = folder.path().join(".staging/left");
    std::fs::write(&left, "half a fi").unwrap();
    drop(open(&folder).await);
    assert!(!left.exists());
}
