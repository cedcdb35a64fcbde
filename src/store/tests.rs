//! Tests of the store on real Delta tables: what is committed stays, what is not is seen once, and a writer that lost
//! its place is refused. Each guarantee comes with the control that breaks it.

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::prelude::SessionContext;

use super::*;

fn spec(name: &str) -> TableSpec {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    TableSpec { name: name.to_owned(), schema, day_of: None, sort_by: vec!["n".to_owned()] }
}

fn rows(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column = Int64Array::from_iter_values(values);
    RecordBatch::try_new(spec("t").schema, vec![Arc::new(column)]).unwrap()
}

fn settings(folder: &tempfile::TempDir) -> Settings {
    Settings { url: folder.path().display().to_string(), ..Settings::default() }
}

async fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(&settings(folder), vec![spec("t"), spec("u")]).await.unwrap()
}

/// Returns all values of a table, sorted: those of the newest commit and those in front of it.
async fn all(tables: Vec<(String, Arc<dyn TableProvider>)>, table: &str) -> Vec<i64> {
    let context = SessionContext::new();
    for (name, provider) in tables {
        context.register_table(name.as_str(), provider).unwrap();
    }
    let batches = context.table(table).await.unwrap().collect().await.unwrap();
    let mut values: Vec<i64> =
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    values.sort_unstable();
    values
}

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
    assert_eq!(all(Store::read(&settings(&folder)).await.unwrap(), "t").await, [1]);
}

/// Takes the lock file away from under a writer, as a second machine on a shared folder would not even see it.
async fn second_writer(folder: &tempfile::TempDir) -> Store {
    std::fs::remove_file(folder.path().join(".bellwether.lock")).unwrap();
    open(folder).await
}

#[tokio::test]
async fn a_writer_that_lost_its_place_is_refused() {
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
    assert_eq!(all(Store::read(&settings(&folder)).await.unwrap(), "t").await, [1, 2]);
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
    assert_eq!(all(Store::read(&settings(&folder)).await.unwrap(), "t").await, [2, 2]);
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

/// `schemas/tables.json` is what readers of the store build on; `UPDATE_GOLDEN=1` writes it anew.
#[test]
fn the_published_schemas_of_tables_are_those_of_the_code() {
    let tables: serde_json::Map<String, serde_json::Value> = columns::record_tables()
        .into_iter()
        .chain(columns::loop_tables())
        .map(|spec| {
            let columns = spec.schema.fields().iter().map(|field| {
                serde_json::json!({
                    "name": field.name(),
                    "type": field.data_type().to_string(),
                    "nullable": field.is_nullable(),
                })
            });
            let partitioned_by = spec.day_of.map(|column| format!("day of {column}"));
            let columns: Vec<_> = columns.collect();
            (spec.name, serde_json::json!({ "columns": columns, "partitioned_by": partitioned_by }))
        })
        .collect();
    let now = serde_json::to_string_pretty(&tables).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/tables.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(published, now, "schemas/tables.json is stale (hint: UPDATE_GOLDEN=1)");
}
