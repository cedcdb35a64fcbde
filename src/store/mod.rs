//! The time-series store: Delta tables on a local folder or any object store, with the rows not yet committed in front.
//!
//! Rows and the position they came from travel in one Delta commit, under a compare-and-set on that position, so a
//! restart finds exactly what it needs to read again. Never reads Kafka, never plans a query.

pub mod columns;
mod compaction;
mod disk;
mod durable;
mod file;
mod location;
mod reader;
mod scan;
mod series;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use deltalake::DeltaTableError;
use url::Url;

pub use compaction::{Eagerness, File};
use disk::{Disk, LocalDisk};
use location::Location;
use table::Table;
pub use table::{Committed, Merged, TableSpec, Vacuumed};
pub use upkeep::{Due, Held, Past};
pub use verify::{Damage, Verified};

/// Where the store is and how it behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A folder, or the URL of an object store (`s3://bucket/path`, `az://…`, `gs://…`).
    pub url: String,
    /// Options of the object store, by the names the `object_store` crate gives them.
    pub options: HashMap<String, String>,
    /// How long rows wait for their commit.
    pub commit_interval: Duration,
    /// Bytes of rows held before the source is made to wait.
    pub head_bytes_max: usize,
    /// Whether a commit to a folder is on the disk, and not only on its way there, when it is done.
    pub durable: bool,
    /// Whether other processes, all with this set, write the same tables at the same time. They exclude a writer that
    /// does not share, and it excludes them.
    pub shared: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            url: "./data".to_owned(),
            options: HashMap::new(),
            commit_interval: Duration::from_secs(2),
            head_bytes_max: 512 << 20,
            durable: true,
            shared: false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store.url {url:?} is not a folder or an object-store URL: {reason}")]
    Url { url: String, reason: String },
    #[error("failed to {action} {path} (hint: it must be a folder this user may write)")]
    Folder { action: &'static str, path: String, source: std::io::Error },
    #[error("failed to sync {path} to its disk (hint: a file system that cannot needs store.durable = false)")]
    Sync { path: String, source: std::io::Error },
    #[error("{path} belongs to another running writer (hint: {hint})")]
    Locked { path: String, hint: &'static str },
    #[error("{path} holds no store (hint: point --data at the folder a service wrote to)")]
    Absent { path: String },
    #[error("failed to open table {table}")]
    Open { table: String, source: DeltaTableError },
    #[error("table {table} has columns {found}, expected {expected} (hint: use another store.url, or rename the view)")]
    Schema { table: String, found: String, expected: String },
    #[error("failed to write a file of table {table}")]
    Write { table: String, source: object_store::Error },
    #[error("failed to encode rows of table {table}")]
    Encode { table: String, source: ArrowError },
    #[error("failed to encode a file of table {table}")]
    Parquet { table: String, source: parquet::errors::ParquetError },
    #[error("file {file} of table {table} cannot be read (hint: bellwether store verify tells what is lost)")]
    File { table: String, file: String, source: parquet::errors::ParquetError },
    #[error("table {table} is damaged: {what} (hint: bellwether store verify tells what is lost)")]
    Damaged { table: String, what: String },
    #[error("failed to commit to table {table}")]
    Commit { table: String, source: DeltaTableError },
    #[error("table {table} moved to {found:?} under {app}, expected {expected:?}: another writer has taken over")]
    Fenced { table: String, app: String, expected: Option<i64>, found: Option<i64> },
    #[error("failed to read table {table}")]
    Read { table: String, source: DataFusionError },
    #[error("no table is called {table}")]
    Unknown { table: String },
    #[error("a task of the store stopped before its work was done")]
    Task(#[from] tokio::task::JoinError),
}

impl StoreError {
    /// Whether trying the same again later may succeed.
    pub fn retriable(&self) -> bool {
        use StoreError::{Commit, File, Open, Read, Write};
        matches!(self, Write { .. } | Commit { .. } | Open { .. } | Read { .. } | File { .. })
    }
}

/// What one call of [`Store::commit`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    pub tables: usize,
    pub rows: usize,
    pub bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    by_name: BTreeMap<String, Arc<Table>>,
    /// In the order of their commits.
    order: Vec<Arc<Table>>,
}

/// All tables of one store, opened for writing: by this process alone, or by several that share it, each with sources of
/// its own.
#[derive(Debug)]
pub struct Store {
    location: Location,
    tables: RwLock<Tables>,
    /// Held shared while rows are sealed or a commit is shown, exclusively while a set of tables is pinned: a reader
    /// sees all tables at one moment.
    pinning: RwLock<()>,
    /// One commit at a time, in the order of [`Store::order`].
    committing: tokio::sync::Mutex<()>,
    series: series::Indexed,
    /// Tables that were found and cannot be read.
    damaged: Vec<Damage>,
}

impl Store {
    /// Opens the store for writing, making what is missing of the folder and the tables.
    ///
    /// The order of `specs` is the order of commits: a table whose rows another table's rows refer to comes first.
    pub async fn open(settings: &Settings, specs: Vec<TableSpec>) -> Result<Store, StoreError> {
        let disk = settings.durable.then(|| Arc::new(LocalDisk) as Arc<dyn Disk>);
        let location = Location::parse(settings)?;
        let location = tokio::task::spawn_blocking(move || location.lock(disk)).await??;
        Store::open_at(location, specs).await
    }

    /// Opens the store to bring rows of another origin into it, beside whoever writes it, making what is missing. One at a
    /// time does on a folder.
    pub async fn open_beside(settings: &Settings, specs: Vec<TableSpec>) -> Result<Store, StoreError> {
        let disk = settings.durable.then(|| Arc::new(LocalDisk) as Arc<dyn Disk>);
        let location = Location::parse(&Settings { shared: true, ..settings.clone() })?;
        let location = tokio::task::spawn_blocking(move || location.lock_import(disk)).await??;
        Store::open_at(location, specs).await
    }

    async fn open_at(location: Location, specs: Vec<TableSpec>) -> Result<Store, StoreError> {
        let (tables, pinning, committing, series, damaged) = Default::default();
        let store = Store { location, tables, pinning, committing, series, damaged };
        store.extend(specs).await?;
        Ok(store)
    }

    /// Opens the tables that are missing, making those that are not there yet, and takes up the order of `specs` for
    /// the commits. Tables that are not named stay, after the others.
    ///
    /// # Errors
    /// A table that has other columns than it should; nothing is changed then.
    pub async fn extend(&self, specs: Vec<TableSpec>) -> Result<(), StoreError> {
        let mut tables = Tables::default();
        let before = self.tables();
        for spec in specs {
            let table = match before.by_name.get(&spec.name) {
                Some(known) => {
                    known.check(&spec)?;
                    Arc::clone(known)
                }
                None => Arc::new(Table::open(&self.location, spec).await?),
            };
            tables.by_name.insert(table.spec().name.clone(), Arc::clone(&table));
            tables.order.push(table);
        }
        for table in before.order {
            if tables.by_name.insert(table.spec().name.clone(), Arc::clone(&table)).is_none() {
                tables.order.push(table);
            }
        }
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = tables;
        Ok(())
    }

    /// Opens all tables found under a URL to look at them, beside whoever writes them: all that can be read, see
    /// [`Store::damaged`].
    ///
    /// # Errors
    /// A place with no table, or none that can be read.
    pub async fn inspect(settings: &Settings) -> Result<Store, StoreError> {
        let location = Location::parse(settings)?;
        let (mut specs, mut damaged, mut first) = (Vec::new(), Vec::new(), None);
        for name in location.tables().await? {
            match table::provider_at(&location, &name).await {
                Ok(table) => specs.push(columns::spec_of(&name, table.schema())),
                // What may pass is no damage.
                Err(error) if verify::is_outage(&error) => return Err(error),
                Err(error) => {
                    damaged.push(Damage::of_table(name, &error));
                    first.get_or_insert(error);
                }
            }
        }
        if specs.is_empty() {
            return Err(first.unwrap_or(StoreError::Absent { path: location.to_string() }));
        }
        Ok(Store { damaged, ..Store::open_at(location, specs).await? })
    }

    /// Returns the tables that were found and cannot be read.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }

    /// Opens all tables found under a URL for their upkeep: alone where it is a folder.
    pub async fn adopt(settings: &Settings) -> Result<Store, StoreError> {
        let disk = settings.durable.then(|| Arc::new(LocalDisk) as Arc<dyn Disk>);
        let location = Location::parse(settings)?;
        if location.tables().await?.is_empty() {
            return Err(StoreError::Absent { path: location.to_string() });
        }
        let location = tokio::task::spawn_blocking(move || location.lock_all(disk)).await??;
        let mut specs = Vec::new();
        for name in location.tables().await? {
            let schema = table::provider_at(&location, &name).await?.schema();
            specs.push(columns::spec_of(&name, schema));
        }
        Store::open_at(location, specs).await
    }

    /// Returns the URL of the store, for people to read.
    pub fn url(&self) -> &Url {
        &self.location.url
    }

    /// Returns the columns of a table.
    pub fn schema(&self, table: &str) -> Result<SchemaRef, StoreError> {
        Ok(self.table(table)?.spec().schema.clone())
    }

    /// Takes in rows of a table together with how far their sources were read: of each app, the next position that
    /// these rows and all before them do not cover. Rows are visible to queries at once, and durable, with the
    /// positions, after the next commit.
    pub fn append(&self, table: &str, batch: Option<RecordBatch>, positions: &[(&str, i64)]) -> Result<(), StoreError> {
        self.table(table)?.append(batch, positions)
    }

    /// Returns where `app` stands in a table: where our own commits left it, or else where it stood when it was first
    /// asked for. What others have moved since is told by [`Store::claim`].
    pub async fn position(&self, table: &str, app: &str) -> Result<Option<i64>, StoreError> {
        self.table(table)?.position(app).await
    }

    /// Takes sources over from other writers: brings a table to its newest commit, returns where each of `apps` stands in
    /// it, and expects it there from now on. What waits for a commit is not counted in; a writer that gives a source
    /// away commits its rows before, or claims only after a restart.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where another writer moved an app of which rows wait here: they would be doubled. Nothing
    /// is claimed then.
    pub async fn claim(&self, table: &str, apps: &[&str]) -> Result<Vec<Option<i64>>, StoreError> {
        let _turn = self.committing.lock().await;
        self.table(table)?.claim(apps, &self.pinning).await
    }

    /// Brings all tables to the newest commits of all writers, for readers. Rows that wait for a commit, and where this
    /// writer expects its sources, stay as they are.
    ///
    /// # Errors
    /// A table that could not be read; nothing is shown then, and a later call shows it all.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let _turn = self.committing.lock().await;
        let mut newer = Vec::new();
        // Others commit in the order of tables, too. Looking the other way round misses nothing that a row refers to.
        for table in self.tables().order.into_iter().rev() {
            if let Some(commit) = table.look_ahead().await? {
                newer.push((table, commit));
            }
        }
        let _shown_at_once = self.pinning.write().unwrap_or_else(PoisonError::into_inner);
        for (table, commit) in newer {
            table.show(commit);
        }
        Ok(())
    }

    /// Returns the bytes of rows that wait for a commit.
    pub fn head_bytes(&self) -> usize {
        self.read_tables().order.iter().map(|table| table.head_bytes()).sum()
    }

    /// Returns the number of rows that wait for a commit.
    pub fn head_rows(&self) -> usize {
        self.read_tables().order.iter().map(|table| table.head_rows()).sum()
    }

    /// Commits all rows and positions of this moment, table after table in the order they were given in.
    ///
    /// # Errors
    /// Where a commit fails its rows stay in the head, still visible, and go with the next call. A writer that lost its
    /// place to another gets [`StoreError::Fenced`], which no retry mends. Being outrun by the commits of others is no
    /// failure: it only takes longer.
    pub async fn commit(&self) -> Result<CommitStats, StoreError> {
        let _turn = self.committing.lock().await;
        let order = self.tables().order;
        let mut stats = CommitStats::default();
        // What failed last time goes first and alone: sealing some tables anew beside it would let a view's rows be
        // committed before the samples they are made of.
        if order.iter().any(|table| table.is_sealed()) {
            self.commit_sealed(&order, &mut stats).await?;
        }
        {
            // Rows come in in this order. Sealing the other way round keeps what a row refers to on its side of the cut, even
            // where more is appended meanwhile.
            let _sealing = self.pinning.write().unwrap_or_else(PoisonError::into_inner);
            order.iter().rev().for_each(|table| table.seal());
        }
        self.commit_sealed(&order, &mut stats).await?;
        Ok(stats)
    }

    async fn commit_sealed(&self, order: &[Arc<Table>], stats: &mut CommitStats) -> Result<(), StoreError> {
        for table in order {
            if let Some(done) = table.commit_sealed(&self.pinning).await? {
                stats.tables += 1;
                stats.rows += done.rows;
                stats.bytes += done.bytes;
            }
        }
        Ok(())
    }

    /// Writes checkpoints of tables whose log has grown, so that opening them stays quick. Of writers that share a store
    /// one does, and no two of the same commit.
    pub async fn maintain(&self) -> Result<(), StoreError> {
        for table in self.tables().order {
            table.checkpoint_if_due().await?;
        }
        Ok(())
    }

    /// Returns every table as of one moment: the newest commit with the rows in front of it, none missed, none twice.
    pub fn pin(&self) -> Vec<(String, Arc<dyn TableProvider>)> {
        let _moment = self.pinning.read().unwrap_or_else(PoisonError::into_inner);
        self.read_tables().by_name.iter().map(|(name, table)| (name.clone(), table.pin())).collect()
    }

    fn table(&self, name: &str) -> Result<Arc<Table>, StoreError> {
        let table = self.read_tables().by_name.get(name).cloned();
        table.ok_or_else(|| StoreError::Unknown { table: name.to_owned() })
    }

    fn read_tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the tables of this moment, to be gone through while others may be added.
    fn tables(&self) -> Tables {
        self.read_tables().clone()
    }
}
