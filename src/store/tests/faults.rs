//! Faults 1 to 5 and the store's part of 19: killed anywhere, answers lost, a store that is down or slow. The control
//! takes the positions away and doubles rows.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::faulty::{Fault, Faults, Operation};
use super::*;

/// Longer than any commit here takes; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(30);

async fn open_faulty(folder: &Path, faults: &Arc<Faults>) -> Store {
    open_wrapped(folder, pair(), |objects| faults.wrap(objects)).await.unwrap()
}

/// Starts anew from what is stored, as after a kill, and brings both tables to `end`. Both must be whole to begin with.
async fn resume(folder: &Path, acknowledged: i64, end: i64) {
    let store = open_faulty(folder, &Faults::none()).await;
    let mut stands = Vec::new();
    for table in ["t", "u"] {
        let position = store.position(table, "a").await.unwrap().unwrap_or(0);
        assert!(position >= acknowledged, "{table} is at {position}, {acknowledged} were acknowledged");
        assert_eq!(all(store.pin(), table).await, (0..position).collect::<Vec<_>>());
        stands.push(position);
    }
    assert!(stands[1] <= stands[0], "u refers to rows of t: {stands:?}");
    store.append("t", Some(daily_rows(stands[0]..end)), &[("a", end)]).unwrap();
    store.append("u", Some(rows(stands[1]..end)), &[("a", end)]).unwrap();
    store.commit().await.unwrap();
    for table in ["t", "u"] {
        assert_eq!(all(store.pin(), table).await, (0..end).collect::<Vec<_>>());
    }
}

/// Kills the second commit at every operation on the store, in turn: of that operation becomes `last`, and nothing that
/// the process still tries happens. Returns how many operations there were.
async fn killed_everywhere(last: Fault) -> usize {
    for which in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::none();
        let store = open_faulty(folder.path(), &faults).await;
        append_pair(&store, 0..3, "a");
        store.commit().await.unwrap();
        append_pair(&store, 3..9, "a");
        let mut operations = 0;
        faults.decide(move |_, _| {
            operations += 1;
            match operations {
                n if n <= which => Fault::None,
                n if n == which + 1 => last,
                _ => Fault::Before,
            }
        });
        let done = store.commit().await;
        drop(store);
        resume(folder.path(), if done.is_ok() { 9 } else { 3 }, 12).await;
        if done.is_ok() {
            return which;
        }
    }
    unreachable!("the loop ends with a commit that was not killed")
}

#[tokio::test]
async fn fault_01_killed_before_any_operation_on_the_store_a_restart_is_exact() {
    let operations = killed_everywhere(Fault::Before).await;
    assert!(operations >= 10, "two tables, several files, heads and log entries are more than {operations} operations");
}

#[tokio::test]
async fn fault_01_killed_after_any_operation_on_the_store_a_restart_is_exact() {
    let operations = killed_everywhere(Fault::After).await;
    assert!(operations >= 10, "two tables, several files, heads and log entries are more than {operations} operations");
}

#[tokio::test]
async fn fault_02_killed_after_parquet_before_the_log_entry_orphans_are_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    faults.decide(|operation, _| if operation == Operation::PutLogEntry { Fault::Before } else { Fault::None });
    append_pair(&store, 0..6, "a");
    store.commit().await.unwrap_err();
    drop(store);
    assert_eq!(parquet_files(folder.path()).len(), 3, "the rows are in files, one a day, that nothing names");
    resume(folder.path(), 0, 6).await;
    assert_eq!(parquet_files(&folder.path().join("t")).len(), 6, "the orphans lie beside the files that count");
}

/// Makes the next put of a log entry land without an answer, and counts the puts of log entries.
fn lose_the_next_answer(faults: &Faults) -> Arc<AtomicUsize> {
    let entries = Arc::new(AtomicUsize::new(0));
    let counted = entries.clone();
    faults.decide(move |operation, _| match operation {
        Operation::PutLogEntry if counted.fetch_add(1, Ordering::SeqCst) == 0 => Fault::After,
        _ => Fault::None,
    });
    entries
}

#[tokio::test]
async fn fault_03_a_commit_that_landed_without_an_answer_is_found_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    let entries = lose_the_next_answer(&faults);
    append_pair(&store, 0..6, "a");
    store.commit().await.unwrap();
    assert_eq!(entries.load(Ordering::SeqCst), 2, "one entry a table: the one that landed is not written again");
    for table in ["t", "u"] {
        assert_eq!(all(store.pin(), table).await, (0..6).collect::<Vec<_>>());
    }
    drop(store);
    resume(folder.path(), 6, 9).await;
}

/// The same where there is nothing but a position to find it by.
#[tokio::test]
async fn fault_03_a_commit_without_rows_is_found_too() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    let entries = lose_the_next_answer(&faults);
    store.append("t", None, &[("a", 5)]).unwrap();
    store.commit().await.unwrap();
    assert_eq!(entries.load(Ordering::SeqCst), 1);
    assert_eq!(store.position("t", "a").await.unwrap(), Some(5));
}

/// Fails every read once the first log entry is written, so many times.
fn fail_reads_after_the_entry(faults: &Faults, times: usize) {
    let (mut written, mut failed) = (false, 0);
    faults.decide(move |operation, _| {
        written |= operation == Operation::PutLogEntry;
        if written && operation == Operation::Read && failed < times {
            failed += 1;
            return Fault::Before;
        }
        Fault::None
    });
}

#[tokio::test]
async fn fault_04_a_hook_that_fails_after_the_commit_is_seen_through() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    fail_reads_after_the_entry(&faults, 1);
    append_pair(&store, 0..6, "a");
    store.commit().await.unwrap();
    assert_eq!(store.head_rows(), 0);
    drop(store);
    resume(folder.path(), 6, 9).await;
}

#[tokio::test]
async fn fault_04_where_the_log_stays_unreadable_the_next_commit_finds_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    fail_reads_after_the_entry(&faults, usize::MAX);
    append_pair(&store, 0..6, "a");
    for _ in 0..3 {
        let error = store.commit().await.unwrap_err();
        assert!(error.retriable(), "{error:?}");
    }
    faults.heal();
    assert_eq!(all(store.pin(), "t").await, (0..6).collect::<Vec<_>>(), "landed, not known to have, and seen once");
    append_pair(&store, 6..9, "a");
    store.commit().await.unwrap();
    drop(store);
    resume(folder.path(), 9, 12).await;
}

/// Loses the answer to a commit and then the process; the next one goes on from the positions, or, as the control, from
/// what the first was told.
async fn killed_without_an_answer(positions: bool) -> Vec<i64> {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    let apps: &[(&str, i64)] = if positions { &[("a", 6)] } else { &[] };
    store.append("t", Some(daily_rows(0..6)), apps).unwrap();
    let mut landed = false;
    faults.decide(move |operation, _| match operation {
        Operation::PutLogEntry if !landed => {
            landed = true;
            Fault::After
        }
        _ if landed => Fault::Before,
        _ => Fault::None,
    });
    assert!(store.commit().await.unwrap_err().retriable());
    drop(store);

    let store = open_faulty(folder.path(), &Faults::none()).await;
    let from = store.position("t", "a").await.unwrap().unwrap_or(0);
    store.append("t", Some(daily_rows(from..9)), &[]).unwrap();
    store.commit().await.unwrap();
    all(store.pin(), "t").await
}

#[tokio::test]
async fn fault_05_control_without_positions_a_lost_answer_doubles_rows() {
    assert_eq!(killed_without_an_answer(true).await, (0..9).collect::<Vec<_>>());
    assert_eq!(killed_without_an_answer(false).await, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8]);
}

#[tokio::test]
async fn fault_19_a_store_that_is_down_holds_commits_up_and_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = open_faulty(folder.path(), &faults).await;
    faults.decide(|_, _| Fault::Before);
    for n in 0..5 {
        append_pair(&store, n * 3..n * 3 + 3, "a");
        let error = store.commit().await.unwrap_err();
        assert!(error.retriable(), "{error:?}");
        assert_eq!(store.head_rows() as i64, 2 * (n * 3 + 3), "nothing is dropped");
    }
    faults.heal();
    store.commit().await.unwrap();
    assert_eq!(store.head_rows(), 0);
    assert_eq!(parquet_files(&folder.path().join("t")).len(), 6, "two commits of three days, and no copies");
    drop(store);
    resume(folder.path(), 15, 18).await;
}

/// While a commit waits for the store, rows come in and are read as before; they are not part of that commit.
#[tokio::test]
async fn fault_19_a_slow_store_stops_neither_appends_nor_reads() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::none();
    let store = Arc::new(open_faulty(folder.path(), &faults).await);
    append_pair(&store, 0..3, "a");
    faults.decide(|operation, _| if operation == Operation::PutLogEntry { Fault::Hang } else { Fault::None });
    let commit = {
        let store = store.clone();
        tokio::spawn(async move { store.commit().await })
    };
    tokio::time::timeout(DEADLINE, faults.waiting.notified()).await.expect("the commit comes to the log entry");
    for n in 1..20 {
        append_pair(&store, n * 3..n * 3 + 3, "a");
        assert_eq!(all(store.pin(), "t").await, (0..n * 3 + 3).collect::<Vec<_>>());
    }
    assert!(!commit.is_finished(), "the commit still waits");
    faults.release();
    let done = tokio::time::timeout(DEADLINE, commit).await.expect("a released commit ends").unwrap().unwrap();
    assert_eq!(done.rows, 6, "the rows of its moment, of both tables");
    assert_eq!(store.position("t", "a").await.unwrap(), Some(3));
    store.commit().await.unwrap();
    drop(store);
    resume(folder.path(), 60, 63).await;
}
