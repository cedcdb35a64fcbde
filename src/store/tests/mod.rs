//! Tests of the store on real Delta tables, undisturbed and under faults. Each guarantee comes with the control that
//! breaks it. Tests called `fault_…` bear the number of their fault in the list of faults survived.

mod commits;
mod disk_full;
mod faults;
pub(crate) mod faulty;
mod files;
mod power_cut;
mod schemas;
mod seeds;
mod several;
mod shared;
pub(crate) mod simulated_disk;
mod upkeep;
mod writers;

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::prelude::SessionContext;

use super::*;

fn spec(name: &str) -> TableSpec {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    TableSpec {
        name: name.to_owned(),
        schema,
        day_of: None,
        sort_by: vec!["n".to_owned()],
        compact_by: &[],
        unique_by: None,
    }
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

/// A table split by day.
fn daily(name: &str) -> TableSpec {
    let ts = Field::new("ts", columns::timestamp(), false);
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), ts]));
    TableSpec {
        name: name.to_owned(),
        schema,
        day_of: Some("ts"),
        sort_by: vec!["n".to_owned()],
        compact_by: &[],
        unique_by: None,
    }
}

/// Rows of a table split by day; neighbours are of different days, so that most commits write several files.
fn daily_rows(values: impl IntoIterator<Item = i64> + Clone) -> RecordBatch {
    let ts = values.clone().into_iter().map(|n| n % 3 * 86_400_000_000);
    let ts = TimestampMicrosecondArray::from_iter_values(ts).with_timezone("UTC");
    let columns: Vec<arrow::array::ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(values)), Arc::new(ts)];
    RecordBatch::try_new(daily("t").schema, columns).unwrap()
}

/// The tables that faults are tried on: rows of `u` refer to rows of `t`, so `t` is committed first.
fn pair() -> Vec<TableSpec> {
    vec![daily("t"), spec("u")]
}

/// Appends the same rows to both tables of a [`pair`], from the one app of `app`.
fn append_pair(store: &Store, values: std::ops::Range<i64>, app: &str) {
    store.append("t", Some(daily_rows(values.clone())), &[(app, values.end)]).unwrap();
    store.append("u", Some(rows(values.clone())), &[(app, values.end)]).unwrap();
}

/// Opens a store in a folder with something between it and its objects.
async fn open_wrapped(
    folder: &std::path::Path,
    specs: Vec<TableSpec>,
    wrap: impl FnOnce(Arc<dyn object_store::ObjectStore>) -> Arc<dyn object_store::ObjectStore>,
) -> Result<Store, StoreError> {
    let settings = Settings { url: folder.display().to_string(), ..Settings::default() };
    Store::open_at(Location::parse(&settings)?.lock_all(None)?.wrapped(wrap), specs).await
}

/// Opens a store in a folder on a disk of its own.
async fn open_on(folder: &std::path::Path, specs: Vec<TableSpec>, disk: Arc<dyn Disk>) -> Result<Store, StoreError> {
    let settings = Settings { url: folder.display().to_string(), ..Settings::default() };
    Store::open_at(Location::parse(&settings)?.lock(Some(disk))?, specs).await
}

/// Opens a store in a folder as one of several writers, on a disk where one is given, with something between it and its
/// objects.
async fn open_sharing(
    folder: &std::path::Path,
    specs: Vec<TableSpec>,
    disk: Option<Arc<dyn Disk>>,
    wrap: impl FnOnce(Arc<dyn object_store::ObjectStore>) -> Arc<dyn object_store::ObjectStore>,
) -> Result<Store, StoreError> {
    let settings = Settings { url: folder.display().to_string(), shared: true, ..Settings::default() };
    Store::open_at(Location::parse(&settings)?.lock(disk)?.wrapped(wrap), specs).await
}

/// Opens a store as one of several writers in an object store, which has no lock.
async fn open_in_memory(
    specs: Vec<TableSpec>,
    objects: Arc<dyn object_store::ObjectStore>,
) -> Result<Store, StoreError> {
    let settings = Settings { url: "memory:///store".to_owned(), shared: true, ..Settings::default() };
    Store::open_at(Location::parse(&settings)?.lock(None)?.wrapped(|_| objects), specs).await
}

/// Opens a store, on a simulated disk where one is given, with something between it and its objects.
pub(crate) async fn open_simulated(
    settings: &Settings,
    specs: Vec<TableSpec>,
    disk: Option<Arc<simulated_disk::SimulatedDisk>>,
    faults: &Arc<faulty::Faults>,
) -> Result<Store, StoreError> {
    let disk = disk.map(|disk| disk as Arc<dyn Disk>);
    Store::open_at(Location::parse(settings)?.lock(disk)?.wrapped(|objects| faults.wrap(objects)), specs).await
}

/// Merges all that could be fewer, as often as faults let it.
async fn merge_all(store: &Store) {
    for due in store.due(Eagerness::Thorough) {
        if let Err(error) = store.merge(&due).await {
            assert!(error.retriable(), "{error:?}");
        }
    }
}

/// Returns the Parquet files below a folder, by name.
fn parquet_files(folder: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(parquet_files(&path));
        } else if path.extension().is_some_and(|e| e == "parquet") {
            files.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    files.sort();
    files
}
