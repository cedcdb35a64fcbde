//! Where a store lies: a folder with its lock, or an object store. Knows no table's content.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use deltalake::logstore::{LogStoreRef, StorageConfig, logstore_factories, logstore_with};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use url::Url;

use super::disk::Disk;
use super::durable::{self, DurableFolder};
use super::{Settings, StoreError};

/// The file whose lock says that a folder has a writer, or several that share it.
const LOCK_FILE: &str = ".bellwether.lock";
/// The file whose lock says that somebody brings rows from elsewhere into a folder, beside its writer.
const IMPORT_LOCK_FILE: &str = ".bellwether.import.lock";
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_STEP: Duration = Duration::from_millis(10);
const HINT_ALONE: &str =
    "stop it, or give this one a folder of its own; only writers that all share a folder go together";
const HINT_IMPORT: &str = "an import is under way; let it end, or stop it";
const HINT_SHARED: &str = "that one does not share the folder; stop it, or start it as one that does";

#[derive(Debug)]
pub(super) struct Location {
    pub url: Url,
    config: StorageConfig,
    /// What everything is read from and written to; its paths are those of the URL.
    objects: Arc<dyn ObjectStore>,
    folder: Option<PathBuf>,
    /// Whether other processes may write here at the same time.
    pub shared: bool,
    /// Whether nobody else can be about to name a file here.
    pub alone: bool,
    /// Held for as long as the location is.
    locks: Vec<File>,
    durable: Option<Arc<DurableFolder>>,
}

/// How the log of one table is made durable; nothing to do on an object store, where all that is visible is.
#[derive(Clone, Debug)]
pub(super) struct Settling(Option<(Arc<DurableFolder>, PathBuf)>);

impl Settling {
    /// Makes sure, before anything is built on what a log shows, that it will still be there after a power cut: whoever
    /// wrote it may have been killed before it was, or be about to see to it.
    pub async fn settle(&self) -> Result<(), StoreError> {
        let Some((durable, log)) = self.0.clone() else { return Ok(()) };
        tokio::task::spawn_blocking(move || durable.adopt(&log)).await?
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            Some(folder) => write!(f, "{}", folder.display()),
            None => write!(f, "{}", self.url),
        }
    }
}

impl Location {
    pub fn parse(settings: &Settings) -> Result<Location, StoreError> {
        static CLOUDS: Once = Once::new();
        CLOUDS.call_once(register_clouds);
        let refused = |reason: String| StoreError::Url { url: settings.url.clone(), reason };
        let folder = match settings.url.split_once("://") {
            None => Some(PathBuf::from(&settings.url)),
            Some(("file", path)) => Some(PathBuf::from(path)),
            Some(_) => None,
        };
        let mut url = match &folder {
            Some(folder) => {
                let whole = std::path::absolute(folder).map_err(|e| refused(e.to_string()))?;
                Url::from_directory_path(whole).map_err(|()| refused("not a path".to_owned()))?
            }
            None => Url::parse(&settings.url).map_err(|e| refused(e.to_string()))?,
        };
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let config = StorageConfig::parse_options(&settings.options).map_err(|e| refused(e.to_string()))?;
        let objects: Arc<dyn ObjectStore> = match &folder {
            Some(_) => Arc::new(LocalFileSystem::new()),
            None => Arc::from(object_store::parse_url_opts(&url, &config.raw).map_err(|e| refused(e.to_string()))?.0),
        };
        Ok(Location {
            url,
            config,
            objects,
            folder,
            shared: settings.shared,
            alone: false,
            locks: Vec::new(),
            durable: None,
        })
    }

    /// Makes the folder where it is missing and takes its lock, with others where it is shared; nothing to do on an
    /// object store, where every commit is a compare-and-set. With a disk, whatever is written from now on is durable on it.
    pub fn lock(mut self, disk: Option<Arc<dyn Disk>>) -> Result<Location, StoreError> {
        let Some(root) = self.make_folder(disk.as_deref())? else { return Ok(self) };
        let (file, imports) = (open_lock(&root, LOCK_FILE)?, open_lock(&root, IMPORT_LOCK_FILE)?);
        // What an import has half-written is not left behind.
        let clear = || {
            if imports.try_lock().is_ok() {
                durable::clear_staging(&root);
            }
        };
        let taken = take_lock(&file, self.shared, clear);
        drop(imports);
        self.locked(taken, &root, if self.shared { HINT_SHARED } else { HINT_ALONE })?;
        self.locks.push(file);
        Ok(self.on(disk, &root))
    }

    /// Makes the folder where it is missing, to bring rows into it beside whoever writes it: one at a time.
    pub fn lock_import(mut self, disk: Option<Arc<dyn Disk>>) -> Result<Location, StoreError> {
        let Some(root) = self.make_folder(disk.as_deref())? else { return Ok(self) };
        let file = open_lock(&root, IMPORT_LOCK_FILE)?;
        self.locked(lock_soon(|| file.try_lock()), &root, HINT_IMPORT)?;
        self.locks.push(file);
        Ok(self.on(disk, &root))
    }

    /// Takes both locks: nobody else writes.
    pub fn lock_all(self, disk: Option<Arc<dyn Disk>>) -> Result<Location, StoreError> {
        let locked = self.lock(disk.clone())?.lock_import(disk)?;
        Ok(Location { alone: locked.folder.is_some(), ..locked })
    }

    /// Returns the folder, made where it was missing; none of an object store.
    fn make_folder(&self, disk: Option<&dyn Disk>) -> Result<Option<PathBuf>, StoreError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let root = self.url.to_file_path().unwrap_or_else(|()| folder.clone());
        match disk {
            Some(disk) => durable::make_root(disk, &root)?,
            None => std::fs::create_dir_all(&root).map_err(named("make", folder))?,
        }
        Ok(Some(root))
    }

    fn locked(&self, taken: Result<(), TryLockError>, root: &Path, hint: &'static str) -> Result<(), StoreError> {
        taken.map_err(|refused| match refused {
            TryLockError::WouldBlock => StoreError::Locked { path: self.to_string(), hint },
            TryLockError::Error(source) => named("lock", root)(source),
        })
    }

    fn on(mut self, disk: Option<Arc<dyn Disk>>, root: &Path) -> Location {
        if let Some(disk) = disk {
            let durable = Arc::new(DurableFolder::open(disk, root));
            self.objects = durable.clone();
            self.durable = Some(durable);
        }
        self
    }

    /// Puts something between the tables and their objects: the faults of tests.
    #[cfg(test)]
    pub fn wrapped(mut self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Location {
        self.objects = wrap(self.objects);
        self
    }

    /// Returns the log store of one table.
    pub fn table(&self, name: &str) -> Result<LogStoreRef, StoreError> {
        let failed = |source| StoreError::Open { table: name.to_owned(), source };
        let url = self.url.join(&format!("{name}/")).map_err(|e| StoreError::Url {
            url: self.url.to_string(),
            reason: format!("table {name:?} does not fit into it: {e}"),
        })?;
        logstore_with(self.objects.clone(), &url, self.config.clone()).map_err(failed)
    }

    /// Returns how the log of one table is made durable.
    pub fn settling(&self, name: &str) -> Settling {
        let root = self.url.to_file_path().ok();
        Settling(self.durable.clone().zip(root.map(|root| root.join(name).join("_delta_log"))))
    }

    /// Returns the names of the Delta tables directly below.
    pub async fn tables(&self) -> Result<Vec<String>, StoreError> {
        if let Some(folder) = &self.folder {
            return Ok(local_tables(folder));
        }
        let read = |source| StoreError::Open { table: self.to_string(), source };
        let log = logstore_with(self.objects.clone(), &self.url, self.config.clone()).map_err(read)?;
        let store = log.object_store(None);
        let listed = store.list_with_delimiter(None).await.map_err(|e| read(e.into()))?;
        let mut names = Vec::new();
        for prefix in listed.common_prefixes {
            let log = prefix.clone().join("_delta_log");
            if store.list(Some(&log)).try_next().await.map_err(|e| read(e.into()))?.is_some() {
                names.extend(prefix.filename().map(str::to_owned));
            }
        }
        Ok(names)
    }
}

fn named(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError::Folder { action, path, source }
}

fn open_lock(root: &Path, name: &str) -> Result<File, StoreError> {
    let path = root.join(name);
    OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(named("write to", &path))
}

/// Takes the lock of a folder, shared or not, and calls `alone` at a moment when nobody else can hold it.
fn take_lock(file: &File, shared: bool, alone: impl FnOnce()) -> Result<(), TryLockError> {
    if !shared {
        lock_soon(|| file.try_lock())?;
        alone();
        return Ok(());
    }
    // The first to share the folder is alone for a moment; whoever comes in that moment waits for longer than it lasts.
    if file.try_lock().is_ok() {
        alone();
        file.unlock().map_err(TryLockError::Error)?;
    }
    lock_soon(|| file.try_lock_shared())
}

/// Locks, waiting a moment: a writer that is just ending lets go soon, and so does a child of ours, which holds our files
/// from its fork to its exec.
fn lock_soon(lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::park_timeout(LOCK_STEP),
            done => return done,
        }
    }
}

fn local_tables(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("_delta_log").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Teaches the Delta library the schemes of the clouds, without the vendors' SDKs: conditional puts are all a commit
/// needs.
fn register_clouds() {
    let memory = Url::parse("memory://").expect("a constant URL");
    let logs = logstore_factories();
    let Some(plain) = logs.get(&memory).map(|entry| entry.value().clone()) else { return };
    for scheme in ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"] {
        logs.insert(Url::parse(&format!("{scheme}://")).expect("a constant URL"), plain.clone());
    }
}
