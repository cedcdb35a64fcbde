//! Merges, vacuums and retention beside writers and readers: rows stay what they were, files become fewer, and what a
//! reader holds on to stays.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parquet::file::reader::{FileReader, SerializedFileReader};

use super::*;
use crate::model::time::EventTime;

/// Commits rows one by one, so that each is a file.
async fn commit_each(store: &Store, values: std::ops::Range<i64>) {
    for n in values {
        store.append("t", Some(daily_rows([n])), &[("a", n + 1)]).unwrap();
        store.commit().await.unwrap();
    }
}

async fn open_daily(folder: &tempfile::TempDir) -> Store {
    Store::open(&settings(folder), vec![daily("t")]).await.unwrap()
}

fn now() -> EventTime {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    EventTime::from_micros(since.as_micros() as i64)
}

fn files_of(store: &Store) -> usize {
    store.held().iter().map(|held| held.files).sum()
}

#[tokio::test]
async fn many_files_become_one_for_each_day_with_the_same_rows_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_daily(&folder).await;
    commit_each(&store, 0..30).await;
    assert_eq!(files_of(&store), 30);
    merge_all(&store).await;
    assert_eq!(files_of(&store), 3);
    assert_eq!(all(store.pin(), "t").await, (0..30).collect::<Vec<_>>());
    assert_eq!(store.position("t", "a").await.unwrap(), Some(30));
    assert!(store.due(Eagerness::Thorough).is_empty(), "once is enough");
    drop(store);
    // Another reader sees the same, by the log alone.
    assert_eq!(all(Store::inspect(&settings(&folder)).await.unwrap().pin(), "t").await, (0..30).collect::<Vec<_>>());
    for name in parquet_files(folder.path()).iter().filter(|name| name.starts_with("day-")) {
        let path = (0..3).map(|day| folder.path().join(format!("t/day=1970-01-0{}/{name}", day + 1)));
        let file = std::fs::File::open(path.into_iter().find(|path| path.exists()).unwrap()).unwrap();
        let metadata = SerializedFileReader::new(file).unwrap().metadata().clone();
        assert!(crate::store::file::is_sorted(&daily("t"), &metadata));
    }
}

#[tokio::test]
async fn commits_go_on_after_a_merge_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_daily(&folder).await;
    commit_each(&store, 0..6).await;
    store.append("t", Some(daily_rows(6..9)), &[("a", 9)]).unwrap();
    merge_all(&store).await;
    assert_eq!(all(store.pin(), "t").await, (0..9).collect::<Vec<_>>());
    store.commit().await.unwrap();
    drop(store);
    let store = open_daily(&folder).await;
    assert_eq!(store.position("t", "a").await.unwrap(), Some(9));
    commit_each(&store, 9..12).await;
    assert_eq!(all(store.pin(), "t").await, (0..12).collect::<Vec<_>>());
}

/// Fault 22: both plan the same merges; each row is there once whoever comes first.
#[tokio::test]
async fn fault_22_of_two_maintainers_one_gives_up() {
    let folder = tempfile::tempdir().unwrap();
    let join = || open_sharing(folder.path(), vec![daily("t")], None, |objects| objects);
    let (one, other) = (join().await.unwrap(), join().await.unwrap());
    commit_each(&one, 0..9).await;
    other.refresh().await.unwrap();
    let (mine, theirs) = (one.due(Eagerness::Thorough), other.due(Eagerness::Thorough));
    assert_eq!((mine.len(), theirs.len()), (3, 3));
    for (mine, theirs) in mine.iter().zip(&theirs) {
        let (first, second) = tokio::join!(one.merge(mine), other.merge(theirs));
        let landed = [first.unwrap(), second.unwrap()];
        assert_eq!(landed.iter().flatten().count(), 1, "{landed:?}");
    }
    for store in [&one, &other] {
        store.refresh().await.unwrap();
        assert_eq!(all(store.pin(), "t").await, (0..9).collect::<Vec<_>>());
    }
    // What the one who gave up had written is not left behind.
    let left = parquet_files(folder.path()).iter().filter(|name| name.starts_with("day-")).count();
    assert_eq!(left, 3);
}

/// Faults 23 and 30: a writer, two maintainers, retention of files and of rows, and readers, all at once. A reader sees all
/// rows through some number, never fewer than it saw before, but for those that retention took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_23_merges_beside_appends_deletes_and_queries_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    let join = || open_sharing(folder.path(), vec![daily("t")], None, |objects| objects);
    let stores = [Arc::new(join().await.unwrap()), Arc::new(join().await.unwrap())];
    let (done, forgotten) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let maintainers: Vec<_> = stores
        .iter()
        .cloned()
        .map(|store| {
            let (done, forgotten) = (done.clone(), forgotten.clone());
            tokio::spawn(async move {
                let mut merged = 0;
                while !done.load(Ordering::SeqCst) {
                    store.refresh().await.unwrap();
                    for due in store.due(Eagerness::Thorough) {
                        merged += store.merge(&due).await.unwrap().map_or(0, |_| 1);
                    }
                    // The first day goes once the third has begun.
                    let gone = store.retain("t", Duration::from_secs(47 * 3600)).await.unwrap();
                    forgotten.fetch_add(gone as i64, Ordering::SeqCst);
                    // Of the second, the even ones do.
                    for past in store.past("t", &[Duration::from_secs(23 * 3600)]).unwrap() {
                        let gone = store.expire(&past, "n", &|n| n % 2 == 0).await.unwrap();
                        forgotten.fetch_add(gone.unwrap_or(0) as i64, Ordering::SeqCst);
                    }
                    tokio::task::yield_now().await;
                }
                merged
            })
        })
        .collect();
    let is_kept = |n: &i64| n % 3 == 2 || (n % 3 == 1 && n % 2 == 1);
    let reader = {
        let (store, done) = (stores[1].clone(), done.clone());
        tokio::spawn(async move {
            let (mut most, mut looks) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let seen: Vec<i64> = all(store.pin(), "t").await.into_iter().filter(is_kept).collect();
                let through = seen.last().map_or(0, |last| last + 1);
                let expected: Vec<i64> = (0..through).filter(is_kept).collect();
                assert_eq!(seen, expected, "rows of days that are kept are missing, or twice");
                assert!(through >= most, "{through} after {most}");
                (most, looks) = (through, looks + 1);
            }
            looks
        })
    };
    commit_each(&stores[0], 0..120).await;
    done.store(true, Ordering::SeqCst);
    let merged: usize = futures::future::try_join_all(maintainers).await.unwrap().into_iter().sum();
    assert!(merged > 10 && reader.await.unwrap() > 3, "{merged} merges");
    let gone = forgotten.load(Ordering::SeqCst);
    assert!(gone > 40, "retention took all of the first day and more: {gone}");
    stores[1].refresh().await.unwrap();
    let left = all(stores[1].pin(), "t").await;
    assert_eq!(left.len() as i64 + gone, 120, "{left:?}");
    assert_eq!(left.iter().filter(|n| is_kept(n)).count(), 60);
}

/// Fault 24: what was merged away stays for readers that hold on to it. The control keeps nothing, and such a reader fails.
#[tokio::test]
async fn fault_24_a_vacuum_leaves_a_slow_reader_its_files() {
    for (keep, is_left) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let folder = tempfile::tempdir().unwrap();
        let store = open_daily(&folder).await;
        commit_each(&store, 0..6).await;
        let slow = store.pin();
        merge_all(&store).await;
        assert_eq!(store.vacuum(keep, now(), true).await.unwrap().files, if is_left { 0 } else { 6 });
        assert_eq!(parquet_files(folder.path()).len(), 9, "a dry run deletes nothing");
        store.vacuum(keep, now(), false).await.unwrap();
        assert_eq!(parquet_files(folder.path()).len(), if is_left { 9 } else { 3 });
        let read = tokio::spawn(async move { all(slow, "t").await }).await;
        assert_eq!(read.ok(), is_left.then(|| (0..6).collect::<Vec<_>>()));
        assert_eq!(all(store.pin(), "t").await, (0..6).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_vacuum_takes_what_a_killed_writer_left_and_nothing_that_waits_for_its_commit() {
    let folder = tempfile::tempdir().unwrap();
    let faults = faulty::Faults::none();
    let store = open_wrapped(folder.path(), vec![daily("t")], |objects| faults.wrap(objects)).await.unwrap();
    commit_each(&store, 0..1).await;
    std::fs::write(folder.path().join("t/day=1970-01-01/part-00000-left.zstd.parquet"), b"left").unwrap();
    std::fs::write(folder.path().join("t/notes.txt"), b"not ours").unwrap();
    // Its file is written, its commit is not.
    faults.decide(|operation, _| match operation == faulty::Operation::PutLogEntry {
        true => faulty::Fault::Before,
        false => faulty::Fault::None,
    });
    store.append("t", Some(daily_rows([3])), &[("a", 4)]).unwrap();
    store.commit().await.unwrap_err();
    faults.heal();
    assert_eq!(parquet_files(folder.path()).len(), 3);
    assert_eq!(store.vacuum(Duration::ZERO, now(), false).await.unwrap().files, 1);
    assert!(folder.path().join("t/notes.txt").exists());
    store.commit().await.unwrap();
    assert_eq!(all(store.pin(), "t").await, [0, 3]);
}

#[tokio::test]
async fn damage_is_told_file_by_file_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&settings(&folder), pair()).await.unwrap();
    append_pair(&store, 0..3, "a");
    store.commit().await.unwrap();
    let day = |n: i64| folder.path().join(format!("t/day=1970-01-0{n}"));
    let file = |n| std::fs::read_dir(day(n)).unwrap().next().unwrap().unwrap().path();
    let sound = store.verify("t", |_| ()).await.unwrap();
    assert_eq!((sound.0.files, sound.0.rows, sound.1), (3, 3, vec![]));
    std::fs::remove_file(file(1)).unwrap();
    let whole = std::fs::read(file(2)).unwrap();
    std::fs::write(file(2), &whole[..whole.len() / 2]).unwrap();
    let mut torn = std::fs::read(file(3)).unwrap();
    torn[4..40].fill(0xff);
    std::fs::write(file(3), torn).unwrap();
    let (seen, damages) = store.verify("t", |_| ()).await.unwrap();
    assert_eq!((seen.files, damages.len()), (3, 3), "{damages:?}");
    assert_eq!(damages[0].what, "is missing");
    assert!(damages[1].what.contains("bytes where the log says"), "{damages:?}");
    assert_eq!(damages.iter().map(|damage| damage.rows).sum::<u64>(), 3);
    // A merge neither hides it nor makes it worse.
    for due in store.due(Eagerness::Thorough).iter().filter(|due| due.table() == "t") {
        let error = store.merge(due).await.unwrap_err();
        assert!(format!("{error:?}").contains("part-"), "{error:?}");
    }
    assert_eq!(all(store.pin(), "u").await, [0, 1, 2]);
}

#[tokio::test]
async fn retention_takes_whole_files_that_are_older() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_daily(&folder).await;
    commit_each(&store, 0..9).await;
    assert_eq!(store.retain("t", Duration::from_secs(72 * 3600)).await.unwrap(), 0);
    assert_eq!(store.retain("t", Duration::from_secs(24 * 3600)).await.unwrap(), 3);
    assert_eq!(all(store.pin(), "t").await, [1, 2, 4, 5, 7, 8]);
    assert_eq!(store.position("t", "a").await.unwrap(), Some(9));
}

#[tokio::test]
async fn rows_that_are_kept_for_shorter_leave_files_that_others_stay_in() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_daily(&folder).await;
    commit_each(&store, 0..12).await;
    merge_all(&store).await;
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let past = store.past("t", &[hours(20), hours(40), hours(60)]).unwrap();
    let mut ages: Vec<Duration> = past.iter().map(|past| past.keep).collect();
    ages.sort_unstable();
    assert_eq!(ages, [hours(20), hours(40)], "the days before the last, by the longest that each is past");
    let mut gone = Vec::new();
    for past in &past {
        let leaves = |n: i64| n == 4 || (n % 2 == 0 && past.keep == hours(40));
        gone.push(store.expire(past, "n", &leaves).await.unwrap());
        assert_eq!(store.expire(past, "n", &leaves).await.unwrap_or_default(), None, "the file is another now");
    }
    gone.sort_unstable();
    assert_eq!(gone, [Some(1), Some(2)]);
    assert_eq!(all(store.pin(), "t").await, [1, 2, 3, 5, 7, 8, 9, 10, 11]);
    for past in store.past("t", &[hours(20)]).unwrap() {
        assert_eq!(store.expire(&past, "n", &|n| n == 4).await.unwrap(), Some(0), "nothing is left to leave");
    }
    assert_eq!(store.verify("t", |_| ()).await.unwrap().1, []);
    assert!(store.due(Eagerness::Thorough).is_empty(), "a finished day stays one");
}

#[tokio::test]
async fn a_table_whose_log_is_damaged_is_named_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&settings(&folder), pair()).await.unwrap();
    append_pair(&store, 0..3, "a");
    store.commit().await.unwrap();
    drop(store);
    let entry = folder.path().join("t/_delta_log/00000000000000000001.json");
    let whole = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, &whole[..whole.len() / 2]).unwrap();
    let found = Store::inspect(&settings(&folder)).await.unwrap();
    assert_eq!(all(found.pin(), "u").await, [0, 1, 2]);
    let damaged: Vec<_> = found.damaged().iter().map(|damage| (damage.table.as_str(), damage.file.clone())).collect();
    assert_eq!(damaged, [("t", None)], "{:?}", found.damaged());
    assert!(Store::adopt(&settings(&folder)).await.is_err(), "nobody merges what cannot be read");
    std::fs::remove_dir_all(folder.path().join("u")).unwrap();
    assert!(Store::inspect(&settings(&folder)).await.is_err(), "nothing is left to read");
}
