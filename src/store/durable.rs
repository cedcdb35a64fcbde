//! A local folder whose writes survive a power cut once they are reported done. Reads are the `object_store` crate's;
//! that crate alone never asks the disk to keep anything.
//!
//! A file is written and synced under a passing name, then gets its own, then its folder is synced. So no name ever
//! stands for bytes that may be lost; and since each write returns only when it is durable, what is written later (a log
//! entry) never outlives what was written before (the files it names).

use std::collections::HashSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, TryFutureExt};
use futures::stream::{BoxStream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use uuid::Uuid;

use super::StoreError;
use super::disk::Disk;

/// Where files are written before they have their name. Below the store's own folder: a name is given without copying
/// only within one file system.
const STAGING: &str = ".staging";

/// An object store over the local file system (its paths are absolute) that writes durably below one folder.
#[derive(Debug)]
pub(super) struct DurableFolder {
    files: LocalFileSystem,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    staging: PathBuf,
    names: Mutex<Names>,
}

/// What is known of the names on the disk.
#[derive(Debug, Default)]
struct Names {
    /// Folders that are themselves durable. A folder that was found is not: who made it may have been killed before it
    /// was synced.
    settled: HashSet<PathBuf>,
    /// Folders that took a name and then failed to be synced. Nothing is read from them until they are: a log entry
    /// found there would pass for a commit that landed.
    owed: HashSet<PathBuf>,
}

type Opened<T> = std::result::Result<T, StoreError>;

/// Makes the folder of a store, and what is missing above it, durable.
pub(super) fn make_root(disk: &dyn Disk, root: &Path) -> Opened<()> {
    let missing: Vec<&Path> = root.ancestors().take_while(|folder| !folder.exists()).collect();
    for folder in missing.iter().rev() {
        make_one(disk, folder).map_err(|source| unmade(folder, source))?;
        if let Some(above) = folder.parent() {
            disk.sync_folder(above).map_err(|source| unsynced(above, source))?;
        }
    }
    for above in root.ancestors().skip(missing.len().max(1)) {
        // Made by somebody, perhaps by us just before we were killed; kept by a power cut or not. Some we may not even
        // open, and those are not ours to keep.
        let _ = disk.sync_folder(above);
    }
    disk.sync_folder(root).map_err(|source| unsynced(root, source))
}

/// Takes away what processes that were killed left half-written. Only for one that is alone: of what lies there nobody
/// can tell whether its writer still lives.
pub(super) fn clear_staging(root: &Path) {
    for left in std::fs::read_dir(root.join(STAGING)).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(left.path());
    }
}

fn make_one(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    match disk.make_folder(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn unmade(folder: &Path, source: io::Error) -> StoreError {
    StoreError::Folder { action: "make", path: folder.display().to_string(), source }
}

fn unsynced(folder: &Path, source: io::Error) -> StoreError {
    StoreError::Sync { path: folder.display().to_string(), source }
}

impl DurableFolder {
    /// Takes over a folder that is there. Other processes may write to it too: names are given only where they are free,
    /// and files are staged under names that nobody else comes upon.
    pub fn open(disk: Arc<dyn Disk>, root: &Path) -> DurableFolder {
        let staging = root.join(STAGING);
        let names = Names { settled: HashSet::from([root.to_path_buf()]), owed: HashSet::new() };
        let writer = Writer { disk, root: root.to_path_buf(), staging, names: Mutex::new(names) };
        DurableFolder { files: LocalFileSystem::new(), writer: Arc::new(writer) }
    }

    /// Makes sure that a folder and every name in it are durable, whoever made them.
    pub fn adopt(&self, folder: &Path) -> Opened<()> {
        self.writer.make(folder).map_err(|source| unmade(folder, source))?;
        self.writer.sync(folder).map_err(|source| unsynced(folder, source))
    }

    async fn put(&self, to: PathBuf, payload: PutPayload, mode: Naming) -> Result<PutResult> {
        let writer = self.writer.clone();
        blocking(move || writer.put(&to, &payload, mode).map_err(|source| failed(&to, source))).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    /// Returns when what is found at or below a path, or beside it, is durable.
    fn settled(&self, location: Option<&Location>) -> BoxFuture<'static, Result<()>> {
        let path = location.and_then(|at| self.files.path_to_filesystem(at).ok());
        let owed = self.writer.owed(path.as_deref());
        let writer = self.writer.clone();
        Box::pin(async move {
            for folder in owed {
                let writer = writer.clone();
                blocking(move || writer.sync(&folder).map_err(|source| failed(&folder, source))).await?;
            }
            Ok(())
        })
    }
}

/// How a name that is taken is dealt with.
#[derive(Clone, Copy, Debug)]
enum Naming {
    /// The name must be free: the compare-and-set that commits rest on.
    Create,
    Overwrite,
}

impl Writer {
    fn put(&self, to: &Path, payload: &PutPayload, naming: Naming) -> io::Result<()> {
        let folder = to.parent().ok_or(ErrorKind::InvalidInput)?;
        self.make(folder)?;
        self.make(&self.staging)?;
        let staged = self.staging.join(Uuid::new_v4().to_string());
        let named = self.disk.write(&staged, payload).and_then(|()| match naming {
            Naming::Create => self.disk.link(&staged, to),
            Naming::Overwrite => self.disk.rename(&staged, to),
        });
        if named.is_err() || matches!(naming, Naming::Create) {
            let _ = self.disk.remove(&staged);
        }
        if named.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            // Somebody took a folder away that was there; the next write makes it again.
            self.names().settled.retain(|folder| *folder == self.root);
        }
        named?;
        self.sync(folder)
    }

    /// Makes a folder and those above it, up to the root, durable.
    fn make(&self, folder: &Path) -> io::Result<()> {
        if self.names().settled.contains(folder) {
            return Ok(());
        }
        let above = folder.parent().ok_or(ErrorKind::InvalidInput)?;
        self.make(above)?;
        make_one(self.disk.as_ref(), folder)?;
        self.sync(above)?;
        self.names().settled.insert(folder.to_path_buf());
        Ok(())
    }

    fn sync(&self, folder: &Path) -> io::Result<()> {
        // Taken off first: a name that comes in while the disk is at work is not covered by it.
        self.names().owed.remove(folder);
        self.disk.sync_folder(folder).inspect_err(|_| {
            self.names().owed.insert(folder.to_path_buf());
        })
    }

    fn owed(&self, path: Option<&Path>) -> Vec<PathBuf> {
        let concerns = |folder: &Path| path.is_none_or(|at| folder.starts_with(at) || at.parent() == Some(folder));
        self.names().owed.iter().filter(|folder| concerns(folder)).cloned().collect()
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what waits for a disk where waiting is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await?,
        Err(_) => work(),
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    let path = path.display().to_string();
    match source.kind() {
        ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: source.into() },
        ErrorKind::NotFound => Error::NotFound { path, source: source.into() },
        ErrorKind::PermissionDenied => Error::PermissionDenied { path, source: source.into() },
        _ => Error::Generic { store: "local folder", source: source.into() },
    }
}

impl fmt::Display for DurableFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableFolder({})", self.writer.root.display())
    }
}

#[async_trait]
impl ObjectStore for DurableFolder {
    async fn put_opts(&self, location: &Location, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let naming = match opts.mode {
            PutMode::Create => Naming::Create,
            PutMode::Overwrite => Naming::Overwrite,
            PutMode::Update(_) => {
                let operation = "a put that replaces a version".to_owned();
                return Err(Error::NotImplemented { operation, implementer: self.to_string() });
            }
        };
        self.put(self.files.path_to_filesystem(location)?, payload, naming).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let to = self.files.path_to_filesystem(location)?;
        let folder = DurableFolder { files: self.files.clone(), writer: self.writer.clone() };
        Ok(Box::new(Upload { folder, to, parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        self.settled(Some(location)).await?;
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Location, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.settled(Some(location)).await?;
        self.files.get_ranges(location, ranges).await
    }

    /// A deletion that a power cut takes back leaves a file that nothing names.
    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        let found = self.files.list(prefix);
        self.settled(prefix).map_ok(|()| found).try_flatten_stream().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Location>, offset: &Location) -> BoxStream<'static, Result<ObjectMeta>> {
        let found = self.files.list_with_offset(prefix, offset);
        self.settled(prefix).map_ok(|()| found).try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        self.settled(prefix).await?;
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> Result<()> {
        let naming = match options.mode {
            CopyMode::Create => Naming::Create,
            CopyMode::Overwrite => Naming::Overwrite,
        };
        let bytes = self.get(from).await?.bytes().await?;
        self.put(self.files.path_to_filesystem(to)?, bytes.into(), naming).await?;
        Ok(())
    }
}

/// A write in parts: gathered, then put as one.
#[derive(Debug)]
struct Upload {
    folder: DurableFolder,
    to: PathBuf,
    parts: Vec<Bytes>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data);
        Box::pin(std::future::ready(Ok(())))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let whole = std::mem::take(&mut self.parts).into_iter().collect();
        self.folder.put(self.to.clone(), whole, Naming::Overwrite).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}
