//! Where a store lies: a folder with its lock, or an object store. Knows no table's content.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::sync::{Arc, Once};

use deltalake::DeltaResult;
use deltalake::logstore::{
    LogStoreRef, ObjectStoreFactory, ObjectStoreRef, StorageConfig, logstore_factories, logstore_for,
    object_store_factories,
};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

use super::{Settings, StoreError};

/// The file whose lock says that a folder has a writer.
const LOCK_FILE: &str = ".bellwether.lock";

#[derive(Debug)]
pub(super) struct Location {
    pub url: Url,
    config: StorageConfig,
    folder: Option<PathBuf>,
    lock: Option<File>,
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
        Ok(Location { url, config, folder, lock: None })
    }

    /// Makes the folder where it is missing and takes its lock; nothing to do on an object store, where every commit is
    /// a compare-and-set.
    pub fn lock(mut self) -> Result<Location, StoreError> {
        let Some(folder) = &self.folder else { return Ok(self) };
        let named = |action, path: &std::path::Path| {
            let path = path.display().to_string();
            move |source| StoreError::Folder { action, path, source }
        };
        std::fs::create_dir_all(folder).map_err(named("make", folder))?;
        let path = folder.join(LOCK_FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(named("write to", &path))?;
        match file.try_lock() {
            Ok(()) => self.lock = Some(file),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: folder.display().to_string() }),
            Err(TryLockError::Error(source)) => return Err(named("lock", &path)(source)),
        }
        Ok(self)
    }

    /// Returns the log store of one table.
    pub fn table(&self, name: &str) -> Result<LogStoreRef, StoreError> {
        let failed = |source| StoreError::Open { table: name.to_owned(), source };
        let url = self.url.join(&format!("{name}/")).map_err(|e| StoreError::Url {
            url: self.url.to_string(),
            reason: format!("table {name:?} does not fit into it: {e}"),
        })?;
        if let Ok(path) = url.to_file_path() {
            // The local store wants its root to exist before the first write.
            std::fs::create_dir_all(&path).map_err(|source| StoreError::Folder {
                action: "make",
                path: path.display().to_string(),
                source,
            })?;
        }
        logstore_for(&url, self.config.clone()).map_err(failed)
    }

    /// Returns the names of the Delta tables directly below.
    pub async fn tables(&self) -> Result<Vec<String>, StoreError> {
        if let Some(folder) = &self.folder {
            return Ok(local_tables(folder));
        }
        let read = |source| StoreError::Open { table: self.to_string(), source };
        let store = logstore_for(&self.url, self.config.clone()).map_err(read)?.object_store(None);
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

fn local_tables(folder: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("_delta_log").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Teaches the Delta library the object stores of the clouds, without the vendors' SDKs: conditional puts are all a
/// commit needs.
fn register_clouds() {
    #[derive(Debug)]
    struct Cloud;
    impl ObjectStoreFactory for Cloud {
        fn parse_url_opts(&self, url: &Url, config: &StorageConfig) -> DeltaResult<(ObjectStoreRef, Path)> {
            let (store, path) = object_store::parse_url_opts(url, &config.raw)?;
            let store: Arc<dyn ObjectStore> = Arc::from(store);
            Ok((store, path))
        }
    }
    let memory = Url::parse("memory://").expect("a constant URL");
    let logs = logstore_factories();
    let default_log = logs.get(&memory).map(|entry| entry.value().clone());
    for scheme in ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"] {
        let key = Url::parse(&format!("{scheme}://")).expect("a constant URL");
        object_store_factories().insert(key.clone(), Arc::new(Cloud));
        if let Some(factory) = &default_log {
            logs.insert(key, factory.clone());
        }
    }
}
