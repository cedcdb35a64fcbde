//! The few calls to a file system that a durable write is made of: real here, simulated in the tests of power cuts.
//! Decides nothing; the order of the calls is `durable`'s.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use object_store::PutPayload;

/// A file system, as far as durable writes need one. A name and what it names become durable apart: the bytes by
/// [`Disk::write`], the name by [`Disk::sync_folder`].
pub(super) trait Disk: Debug + Send + Sync + 'static {
    /// Makes one folder, whose parent is there.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Writes a file that is not there yet, and returns when its bytes survive a power cut. Its name need not.
    fn write(&self, path: &Path, payload: &PutPayload) -> io::Result<()>;

    /// Gives a file a further name; fails with `AlreadyExists` where the name is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, taking it from the file that bears it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Returns when all names in a folder survive a power cut.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// The file system of this machine.
#[derive(Debug)]
pub(super) struct LocalDisk;

impl Disk for LocalDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write(&self, path: &Path, payload: &PutPayload) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        payload.iter().try_for_each(|part| file.write_all(part))?;
        // By the handle that wrote: what went wrong while the pages were written back is told to no other.
        file.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}
