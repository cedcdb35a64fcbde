//! Tests of appending, committing, pinning and reopening, undisturbed: what is committed stays, what is not is seen once,
//! and a folder has one writer.

use super::*;

#[tokio::test]
async fn rows_are_seen_at_once_and_once_before_and_after_their_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    store.append("t", Some(rows([2, 1])), &[("a", 2)]).unwrap();
    assert_eq!(all(store.pin(), "t").await, [1, 2]);
    assert_eq!(store.commit().await.unwrap().rows, 2);
    assert_eq!(all(store.pin(), "t").await, [1, 2]);
    store.append("t", Some(rows([3])), &[("a", 3)]).unwrap();
    assert_eq!(all(store.pin(), "t").await, [1, 2, 3]);
    assert_eq!((store.head_rows(), store.commit().await.unwrap().rows, store.head_rows()), (1, 1, 0));
}

#[tokio::test]
async fn a_pin_keeps_its_moment_while_commits_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    store.append("t", Some(rows([1])), &[]).unwrap();
    let before = store.pin();
    store.commit().await.unwrap();
    store.append("t", Some(rows([2])), &[]).unwrap();
    store.commit().await.unwrap();
    assert_eq!(all(before, "t").await, [1]);
    assert_eq!(all(store.pin(), "t").await, [1, 2]);
}

#[tokio::test]
async fn a_restart_finds_the_committed_rows_and_positions_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    store.append("t", Some(rows([1])), &[("a", 1), ("b", 7)]).unwrap();
    store.commit().await.unwrap();
    store.append("t", Some(rows([2])), &[("a", 2)]).unwrap();
    drop(store);
    let store = open(&folder).await;
    assert_eq!(all(store.pin(), "t").await, [1]);
    assert_eq!(store.position("t", "a").await.unwrap(), Some(1));
    assert_eq!(store.position("t", "b").await.unwrap(), Some(7));
    assert_eq!(store.position("t", "c").await.unwrap(), None);
    assert_eq!(store.position("u", "a").await.unwrap(), None, "positions are of one table");
}

#[tokio::test]
async fn positions_without_rows_are_committed_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    store.append("t", None, &[("a", 9)]).unwrap();
    store.commit().await.unwrap();
    drop(store);
    assert_eq!(open(&folder).await.position("t", "a").await.unwrap(), Some(9));
}

#[tokio::test]
async fn a_folder_has_one_writer_and_any_number_of_readers() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    store.append("t", Some(rows([1])), &[]).unwrap();
    store.commit().await.unwrap();
    let second = Store::open(&settings(&folder), vec![spec("t")]).await;
    assert!(matches!(second, Err(StoreError::Locked { .. })), "{second:?}");
    assert_eq!(all(Store::inspect(&settings(&folder)).await.unwrap().pin(), "t").await, [1]);
}

#[tokio::test]
async fn counts_never_shrink_nor_double_while_commits_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&folder).await);
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..40 {
                store.append("t", Some(rows([n])), &[("a", n + 1)]).unwrap();
                if n % 3 == 0 {
                    store.commit().await.unwrap();
                }
            }
        })
    };
    let mut seen = 0;
    while seen < 40 {
        let values = all(store.pin(), "t").await;
        assert!(values.len() >= seen, "{} rows after {seen}", values.len());
        assert!(values.windows(2).all(|pair| pair[0] != pair[1]), "a row twice: {values:?}");
        seen = values.len();
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn many_commits_are_summed_up_in_a_checkpoint_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    for n in 0..101 {
        store.append("t", Some(rows([n])), &[("a", n + 1)]).unwrap();
        store.commit().await.unwrap();
        store.maintain().await.unwrap();
    }
    assert!(folder.path().join("t/_delta_log/_last_checkpoint").exists());
    drop(store);
    let store = open(&folder).await;
    assert_eq!(store.position("t", "a").await.unwrap(), Some(101));
    assert_eq!(all(store.pin(), "t").await.len(), 101);
}

#[tokio::test]
async fn columns_that_changed_are_named() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder).await);
    let other = Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, false)]));
    let changed = TableSpec { schema: other, ..spec("t") };
    let refused = Store::open(&settings(&folder), vec![changed]).await.unwrap_err().to_string();
    assert!(refused.contains("n Int64") && refused.contains("n Utf8"), "{refused}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let settings = Settings { url: file.join("below").display().to_string(), ..Settings::default() };
    let refused = Store::open(&settings, vec![spec("t")]).await.unwrap_err().to_string();
    assert!(refused.contains("failed to make") && refused.contains("hint"), "{refused}");
}

/// No cloud is asked anything here: each scheme has an object store and a log, under the table's own path.
#[test]
fn every_scheme_of_object_stores_has_a_log() {
    let azure = [("azure_storage_account_name", "account"), ("azure_skip_signature", "true")];
    let cases: [(&str, &[(&str, &str)]); 4] = [
        ("s3://bucket/some/path", &[("aws_region", "eu-central-1"), ("aws_skip_signature", "true")]),
        ("s3a://bucket/some/path/", &[("aws_region", "eu-central-1")]),
        ("gs://bucket/some/path", &[("google_skip_signature", "true")]),
        ("az://container/some/path", &azure),
    ];
    for (url, options) in cases {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let settings = Settings { url: url.to_owned(), options, ..Settings::default() };
        let location = Location::parse(&settings).unwrap().lock(Some(Arc::new(LocalDisk))).unwrap();
        let log = location.table("t").unwrap_or_else(|error| panic!("{url}: {error:?}"));
        assert!(log.config().location().path().ends_with("/some/path/t/"), "{url}: {}", log.config().location());
    }
    let unknown = Settings { url: "ftp://host/path".to_owned(), ..Settings::default() };
    assert!(matches!(Location::parse(&unknown), Err(StoreError::Url { .. })));
}
