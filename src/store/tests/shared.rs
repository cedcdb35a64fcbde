//! Tests of several writers that share one store: their locks, sources handed from one to the other, the commits of
//! others under one's own rows, series that two of them meet, and checkpoints.

use std::time::Duration;

use object_store::memory::InMemory;

use super::faulty::{Fault, Faults, Operation};
use super::*;

/// Longer than anything here takes; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn shared(folder: &tempfile::TempDir, shared: bool) -> Settings {
    Settings { shared, ..settings(folder) }
}

/// A table of rows, and one of values that are there once.
fn specs() -> Vec<TableSpec> {
    vec![TableSpec { unique_by: Some("n"), ..spec("s") }, spec("t")]
}

async fn join(folder: &tempfile::TempDir) -> Store {
    Store::open(&shared(folder, true), specs()).await.unwrap()
}

async fn join_faulty(folder: &tempfile::TempDir, faults: &Arc<Faults>) -> Store {
    open_sharing(folder.path(), specs(), None, |objects| faults.wrap(objects)).await.unwrap()
}

async fn stored(folder: &tempfile::TempDir, table: &str) -> Vec<i64> {
    all(Store::inspect(&settings(folder)).await.unwrap().pin(), table).await
}

#[tokio::test]
async fn writers_that_share_go_together_and_one_that_does_not_goes_alone() {
    for (first, second) in [(true, true), (true, false), (false, true)] {
        let folder = tempfile::tempdir().unwrap();
        let held = Store::open(&shared(&folder, first), specs()).await.unwrap();
        let other = Store::open(&shared(&folder, second), specs()).await;
        match other {
            Ok(_) => assert!(first && second),
            Err(error) => assert!(error.to_string().contains("share") && !(first && second), "{error}"),
        }
        drop(held);
        Store::open(&shared(&folder, second), specs()).await.unwrap();
    }
}

/// An import writes beside a service, shared or not, one at a time; nobody else merges or deletes meanwhile by hand. What both
/// meet, be it in the same tables or the same values, is there once, and each shows what the other brought.
#[tokio::test]
async fn an_import_goes_beside_a_writer_of_either_kind() {
    for is_shared in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let service = Store::open(&shared(&folder, is_shared), specs()).await.unwrap();
        let import = Store::open_beside(&settings(&folder), specs()).await.unwrap();
        let second = Store::open_beside(&settings(&folder), specs()).await.unwrap_err();
        assert!(second.to_string().contains("an import is under way"), "{second}");
        for (store, values, app) in [(&service, 0..5, "a"), (&import, 3..8, "b"), (&service, 6..10, "a")] {
            store.append("s", Some(rows(values.clone())), &[]).unwrap();
            store.append("t", Some(rows(values.clone())), &[(app, values.end)]).unwrap();
            store.commit().await.unwrap();
            for other in [&service, &import] {
                other.refresh().await.unwrap();
            }
        }
        for store in [&service, &import] {
            assert_eq!(all(store.pin(), "s").await, (0..10).collect::<Vec<_>>());
            assert_eq!(all(store.pin(), "t").await, [0, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9]);
        }
        drop(service);
        let by_hand = Store::adopt(&settings(&folder)).await.unwrap_err();
        assert!(by_hand.to_string().contains("an import is under way"), "{by_hand}");
        let restarted = Store::open(&shared(&folder, is_shared), specs()).await.unwrap();
        drop((import, restarted));
        Store::adopt(&settings(&folder)).await.unwrap();
    }
}

#[tokio::test]
async fn what_an_import_has_half_written_is_not_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let import = Store::open_beside(&settings(&folder), specs()).await.unwrap();
    let left = folder.path().join(".staging/left");
    std::fs::write(&left, "half a fi").unwrap();
    drop(Store::open(&settings(&folder), specs()).await.unwrap());
    assert!(left.exists(), "the import may be about to name it");
    drop(import);
    drop(Store::open(&settings(&folder), specs()).await.unwrap());
    assert!(!left.exists());
}

#[tokio::test]
async fn half_written_files_are_taken_away_only_by_a_writer_that_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let held = join(&folder).await;
    let left = folder.path().join(".staging/left");
    std::fs::write(&left, "half a fi").unwrap();
    drop(join(&folder).await);
    assert!(left.exists(), "it may be a living writer's");
    drop(held);
    drop(join(&folder).await);
    assert!(!left.exists());
}

#[tokio::test]
async fn writers_that_start_at_once_make_each_table_once() {
    let folder = tempfile::tempdir().unwrap();
    let started = futures::future::join_all((0..4).map(|_| join(&folder))).await;
    assert_eq!(started.len(), 4);
    for table in ["s", "t"] {
        let log = folder.path().join(table).join("_delta_log");
        assert!(log.join("00000000000000000000.json").exists() && !log.join("00000000000000000001.json").exists());
    }
}

#[tokio::test]
async fn a_source_goes_from_writer_to_writer_and_only_its_owner_commits() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (join(&folder).await, join(&folder).await);
    assert_eq!(one.claim("t", &["a"]).await.unwrap(), [None]);
    assert_eq!(two.position("t", "a").await.unwrap(), None);
    let mut owners = [&one, &two].into_iter().cycle();
    for n in 0..4 {
        let (owner, next) = (owners.next().unwrap(), owners.clone().next().unwrap());
        owner.append("t", Some(rows([n])), &[("a", n + 1)]).unwrap();
        owner.commit().await.unwrap();
        assert_eq!(next.claim("t", &["b", "a"]).await.unwrap(), [None, Some(n + 1)]);
        assert_eq!(next.position("t", "a").await.unwrap(), Some(n + 1));
    }
    assert_eq!(stored(&folder, "t").await, [0, 1, 2, 3]);

    // Whoever goes on with what was given away is refused, and so is taking it back over rows that wait.
    one.append("t", Some(rows([4])), &[("a", 5)]).unwrap();
    one.commit().await.unwrap();
    two.append("t", Some(rows([4])), &[("a", 5)]).unwrap();
    for refused in [two.commit().await.map(drop), two.claim("t", &["a"]).await.map(drop), two.commit().await.map(drop)]
    {
        assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    }
    assert_eq!(stored(&folder, "t").await, [0, 1, 2, 3, 4]);
}

/// What became of a commit before others are looked for: not tried, refused, landed without an answer.
#[tokio::test]
async fn a_refresh_shows_what_others_committed_and_keeps_what_waits_here() {
    for tried in [None, Some(Fault::Before), Some(Fault::After)] {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::none();
        let (here, there) = (join_faulty(&folder, &faults).await, join(&folder).await);
        here.append("s", Some(rows([1])), &[]).unwrap();
        here.append("t", Some(rows([1])), &[("a", 1)]).unwrap();
        if let Some(fault) = tried {
            let mut reached = false;
            faults.decide(move |operation, path| {
                reached |= operation == Operation::PutLogEntry && path.as_ref().contains("/t/");
                if reached { if operation == Operation::Read { Fault::Before } else { fault } } else { Fault::None }
            });
            here.commit().await.unwrap_err();
            faults.heal();
        }
        here.append("s", Some(rows([2])), &[]).unwrap();
        here.append("t", Some(rows([2])), &[("a", 2)]).unwrap();
        there.append("s", Some(rows([2, 3])), &[]).unwrap();
        there.append("t", Some(rows([10])), &[("b", 1)]).unwrap();
        there.commit().await.unwrap();

        assert_eq!(all(here.pin(), "t").await, [1, 2], "{tried:?}");
        for _ in 0..2 {
            here.refresh().await.unwrap();
            assert_eq!(all(here.pin(), "t").await, [1, 2, 10], "{tried:?}");
            assert_eq!(all(here.pin(), "s").await, [1, 2, 3], "{tried:?}");
        }
        // Of two rows in each table: what landed, and what others told of, waits no longer.
        let waits = match tried {
            None => 3,
            Some(Fault::Before) => 2,
            _ => 1,
        };
        assert_eq!(here.head_rows(), waits, "{tried:?}");
        assert_eq!(here.position("t", "b").await.unwrap(), Some(1));
        here.commit().await.unwrap();
        there.refresh().await.unwrap();
        for tables in [here.pin(), there.pin(), Store::inspect(&settings(&folder)).await.unwrap().pin()] {
            assert_eq!(all(tables.clone(), "t").await, [1, 2, 10], "{tried:?}");
            assert_eq!(all(tables, "s").await, [1, 2, 3], "{tried:?}");
        }
        assert_eq!(here.position("t", "a").await.unwrap(), Some(2));
    }
}

#[tokio::test]
async fn values_that_others_committed_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (join(&folder).await, join(&folder).await);
    one.append("s", Some(rows([1, 2])), &[]).unwrap();
    two.append("s", Some(rows([2, 3])), &[]).unwrap();
    assert_eq!(one.commit().await.unwrap().rows, 2);
    assert_eq!(two.commit().await.unwrap().rows, 1);
    one.append("s", Some(rows([3])), &[]).unwrap();
    assert_eq!(one.commit().await.unwrap(), CommitStats::default(), "nothing is left to commit");
    // Left out at once where it is known already; the position is committed all the same.
    one.append("s", Some(rows([3])), &[("a", 1)]).unwrap();
    assert_eq!(one.head_rows(), 0);
    assert_eq!(one.commit().await.unwrap().tables, 1);
    assert_eq!(stored(&folder, "s").await, [1, 2, 3]);
    assert_eq!(two.claim("s", &["a"]).await.unwrap(), [Some(1)]);
}

#[tokio::test]
async fn values_that_others_commit_while_a_commit_is_on_its_way_are_left_out() {
    for (here, left) in [(vec![5, 6], 1), (vec![6], 0), (vec![4, 5], 2)] {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::none();
        let (one, two) = (Arc::new(join_faulty(&folder, &faults).await), join(&folder).await);
        one.append("s", Some(rows(here.clone())), &[]).unwrap();
        faults.decide(|operation, _| if operation == Operation::PutLogEntry { Fault::Hang } else { Fault::None });
        let commit = tokio::spawn({
            let one = one.clone();
            async move { one.commit().await }
        });
        tokio::time::timeout(DEADLINE, faults.waiting.notified()).await.expect("the commit comes to the log entry");
        two.append("s", Some(rows([6, 7])), &[]).unwrap();
        two.commit().await.unwrap();
        faults.release();
        let done = tokio::time::timeout(DEADLINE, commit).await.expect("a released commit ends").unwrap().unwrap();
        assert_eq!((done.rows, one.head_rows()), (left, 0), "{here:?}");
        let expected: std::collections::BTreeSet<i64> = here.into_iter().chain([6, 7]).collect();
        assert_eq!(stored(&folder, "s").await, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(all(one.pin(), "s").await, stored(&folder, "s").await);
    }
}

/// Nothing fails but the race, and no writer loses it for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_writers_outrun_each_other_and_no_commit_fails() {
    const WRITERS: i64 = 6;
    const COMMITS: i64 = 20;
    let objects: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
    let busy = (0..WRITERS).map(|writer| {
        let objects = objects.clone();
        tokio::spawn(async move {
            let store = open_in_memory(specs(), objects).await.unwrap();
            for n in 0..COMMITS {
                store.append("t", Some(rows([writer * COMMITS + n])), &[(&writer.to_string(), n + 1)]).unwrap();
                store.commit().await.unwrap();
            }
            store
        })
    });
    let stores = futures::future::join_all(busy.collect::<Vec<_>>()).await;
    for store in stores {
        let store = store.unwrap();
        store.refresh().await.unwrap();
        assert_eq!(all(store.pin(), "t").await, (0..WRITERS * COMMITS).collect::<Vec<_>>());
        assert_eq!(store.claim("t", &["0", "5"]).await.unwrap(), [Some(COMMITS); 2]);
    }
}

#[tokio::test]
async fn writers_that_share_sum_the_log_up_for_each_other() {
    const COMMITS: i64 = 120;
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { durable: false, ..shared(&folder, true) };
    let mut stores = Vec::new();
    for app in ["a", "b"] {
        stores.push((app, Store::open(&settings, specs()).await.unwrap()));
    }
    for n in 0..COMMITS {
        for (app, store) in &stores {
            store.append("t", Some(rows([n])), &[(app, n + 1)]).unwrap();
            store.commit().await.unwrap();
            store.maintain().await.unwrap();
        }
    }
    let log = std::fs::read_dir(folder.path().join("t/_delta_log")).unwrap();
    let names = log.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.contains(".checkpoint")).count(), 2, "one of a hundred commits, whoever's");
    let expected: Vec<i64> = (0..COMMITS).flat_map(|n| [n, n]).collect();
    for store in stores.into_iter().map(|(_, store)| store).chain([join(&folder).await]) {
        store.refresh().await.unwrap();
        assert_eq!(all(store.pin(), "t").await, expected);
        assert_eq!(store.claim("t", &["a", "b"]).await.unwrap(), [Some(COMMITS); 2]);
    }
}
