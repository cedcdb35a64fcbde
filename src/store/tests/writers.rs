//! Tests of two writers on one table, where no lock keeps them apart: faults 6 to 8, and the control without positions.

use super::*;

/// Takes the lock file away from under a writer, as a second machine on a shared folder would not even see it.
async fn second_writer(folder: &tempfile::TempDir) -> Store {
    std::fs::remove_file(folder.path().join(".bellwether.lock")).unwrap();
    open(folder).await
}

#[tokio::test]
async fn fault_06_a_writer_that_lost_its_place_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let zombie = open(&folder).await;
    zombie.append("t", Some(rows([1])), &[("a", 1)]).unwrap();
    zombie.commit().await.unwrap();
    let owner = second_writer(&folder).await;
    owner.append("t", Some(rows([2])), &[("a", 2)]).unwrap();
    assert_eq!(owner.position("t", "a").await.unwrap(), Some(1));
    owner.commit().await.unwrap();

    zombie.append("t", Some(rows([2])), &[("a", 3)]).unwrap();
    let refused = zombie.commit().await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert_eq!(all(Store::inspect(&settings(&folder)).await.unwrap().pin(), "t").await, [1, 2]);
}

#[tokio::test]
async fn control_without_positions_the_same_rows_are_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let zombie = open(&folder).await;
    let owner = second_writer(&folder).await;
    for writer in [&owner, &zombie] {
        writer.append("t", Some(rows([2])), &[]).unwrap();
        writer.commit().await.unwrap();
    }
    assert_eq!(all(Store::inspect(&settings(&folder)).await.unwrap().pin(), "t").await, [2, 2]);
}

#[tokio::test]
async fn a_commit_of_another_writer_under_another_name_is_no_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let one = open(&folder).await;
    let two = second_writer(&folder).await;
    one.append("t", Some(rows([1])), &[("a", 1)]).unwrap();
    two.append("t", Some(rows([2])), &[("b", 1)]).unwrap();
    one.commit().await.unwrap();
    two.commit().await.unwrap();
    assert_eq!(all(two.pin(), "t").await, [1, 2]);
}

/// A zombie's snapshot may be as new as the owner's: what counts is where it believes its partitions stand.
#[tokio::test]
async fn fault_07_a_zombie_that_refreshed_its_snapshot_is_refused_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let zombie = open(&folder).await;
    assert_eq!(zombie.position("t", "a").await.unwrap(), None);
    let owner = second_writer(&folder).await;
    owner.append("t", Some(rows([0])), &[("a", 1)]).unwrap();
    owner.commit().await.unwrap();

    // A commit for a partition that is still its own shows it the owner's commit.
    zombie.append("t", Some(rows([100])), &[("b", 1)]).unwrap();
    zombie.commit().await.unwrap();
    assert_eq!(all(zombie.pin(), "t").await, [0, 100]);

    zombie.append("t", Some(rows([0])), &[("a", 1)]).unwrap();
    let refused = zombie.commit().await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert_eq!(all(Store::inspect(&settings(&folder)).await.unwrap().pin(), "t").await, [0, 100]);
}

/// One commit over three partitions, one of which another writer has moved to `stolen_to` meanwhile. Nothing of it may
/// land, and a restart from the stored positions makes all exact.
async fn commit_over_three_partitions_of_which_one_was_lost(stolen_to: i64) {
    let folder = tempfile::tempdir().unwrap();
    let zombie = open(&folder).await;
    let owner = second_writer(&folder).await;
    for app in ["a", "b", "c"] {
        assert_eq!(owner.position("t", app).await.unwrap(), None);
        assert_eq!(zombie.position("t", app).await.unwrap(), None);
    }
    owner.append("t", Some(rows(100..100 + stolen_to)), &[("b", stolen_to)]).unwrap();
    owner.commit().await.unwrap();

    zombie.append("t", Some(rows([0, 1, 100, 101, 200, 201])), &[("a", 2), ("b", 2), ("c", 2)]).unwrap();
    let refused = zombie.commit().await;
    assert!(matches!(&refused, Err(StoreError::Fenced { app, .. }) if app == "b"), "{refused:?}");
    let again = zombie.commit().await;
    assert!(matches!(again, Err(StoreError::Fenced { .. })), "{again:?}");
    let taken: Vec<i64> = (100..100 + stolen_to).collect();
    assert_eq!(all(Store::inspect(&settings(&folder)).await.unwrap().pin(), "t").await, taken);

    drop((zombie, owner));
    let restarted = open(&folder).await;
    let mut positions = Vec::new();
    for (app, base) in [("a", 0), ("b", 100), ("c", 200)] {
        let from = restarted.position("t", app).await.unwrap().unwrap_or(0);
        restarted.append("t", Some(rows(base + from..base + 2)), &[(app, 2)]).unwrap();
        positions.push(from);
    }
    assert_eq!(positions, [0, stolen_to, 0]);
    restarted.commit().await.unwrap();
    assert_eq!(all(restarted.pin(), "t").await, [0, 1, 100, 101, 200, 201]);
}

#[tokio::test]
async fn fault_08_a_commit_over_three_partitions_of_which_one_was_lost_is_refused_whole() {
    commit_over_three_partitions_of_which_one_was_lost(1).await;
}

/// The other writer got exactly as far as this commit would: equal positions must not pass for our own commit.
#[tokio::test]
async fn fault_08_the_same_where_the_other_writer_came_to_the_same_position() {
    commit_over_three_partitions_of_which_one_was_lost(2).await;
}
