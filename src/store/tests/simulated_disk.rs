//! A disk that remembers what it was told to keep. It does everything on a real folder, so that the store's reads are
//! real, and writes down each step; [`Trace::after_cut`] then makes the folder that a power cut after any number of steps
//! would have left, dropping or tearing what was not synced.
//!
//! The rules are those POSIX guarantees and no file system's better ones: bytes are kept only by a sync of the file, and
//! each name only by a sync of its folder; without it each change of a name is kept or lost by itself.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use object_store::PutPayload;
use rand::Rng;
use rand::rngs::StdRng;

use crate::store::disk::Disk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    MakeFolder,
    Write,
    Link,
    Rename,
    Remove,
    SyncFolder,
}

#[derive(Clone, Debug)]
enum Step {
    MakeFolder(PathBuf),
    Write(PathBuf, Bytes),
    SyncFile(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncFolder(PathBuf),
    /// Everything below this number was reported as committed.
    Acknowledge(i64),
}

/// Syncs that the disk reports as done and does not do: the controls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgets {
    pub bytes: bool,
    pub names: bool,
}

type Fail = Box<dyn FnMut(Call, &Path) -> Option<io::Error> + Send>;

#[derive(Default)]
pub struct SimulatedDisk {
    forgets: Forgets,
    steps: Mutex<Vec<Step>>,
    fail: Mutex<Option<Fail>>,
}

impl std::fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedDisk").field("forgets", &self.forgets).finish_non_exhaustive()
    }
}

impl SimulatedDisk {
    pub fn new(forgets: Forgets) -> SimulatedDisk {
        SimulatedDisk { forgets, ..SimulatedDisk::default() }
    }

    /// Takes over a folder as it stands: after a power cut, all that is there is there to stay.
    pub fn holding(top: &Path, forgets: Forgets) -> SimulatedDisk {
        let disk = SimulatedDisk::new(forgets);
        disk.hold(top);
        disk
    }

    fn hold(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.note(Step::MakeFolder(path.clone()));
                self.hold(&path);
            } else {
                self.note(Step::Write(path.clone(), Bytes::from(fs::read(&path).unwrap())));
                self.note(Step::SyncFile(path));
            }
        }
        self.note(Step::SyncFolder(folder.to_owned()));
    }

    /// From now on `fail` decides which calls fail.
    pub fn fail(&self, fail: impl FnMut(Call, &Path) -> Option<io::Error> + Send + 'static) {
        *self.fail.lock().unwrap() = Some(Box::new(fail));
    }

    pub fn heal(&self) {
        *self.fail.lock().unwrap() = None;
    }

    pub fn acknowledge(&self, through: i64) {
        self.note(Step::Acknowledge(through));
    }

    pub fn trace(&self) -> Trace {
        Trace(self.steps.lock().unwrap().clone())
    }

    fn note(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }

    fn failure(&self, call: Call, path: &Path) -> io::Result<()> {
        let failure = self.fail.lock().unwrap().as_mut().and_then(|fail| fail(call, path));
        failure.map_or(Ok(()), Err)
    }
}

impl Disk for SimulatedDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.failure(Call::MakeFolder, path)?;
        fs::create_dir(path)?;
        self.note(Step::MakeFolder(path.to_owned()));
        Ok(())
    }

    fn write(&self, path: &Path, payload: &PutPayload) -> io::Result<()> {
        let bytes = Bytes::from(payload.clone());
        if let Err(failure) = self.failure(Call::Write, path) {
            // A disk that fills up takes what still fits.
            let half = bytes.slice(..bytes.len() / 2);
            fs::write(path, &half)?;
            self.note(Step::Write(path.to_owned(), half));
            return Err(failure);
        }
        assert!(!path.exists(), "{} is written twice", path.display());
        fs::write(path, &bytes)?;
        self.note(Step::Write(path.to_owned(), bytes));
        if !self.forgets.bytes {
            self.note(Step::SyncFile(path.to_owned()));
        }
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.failure(Call::Link, to)?;
        fs::hard_link(from, to)?;
        self.note(Step::Link(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.failure(Call::Rename, to)?;
        fs::rename(from, to)?;
        self.note(Step::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.failure(Call::Remove, path)?;
        fs::remove_file(path)?;
        self.note(Step::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.failure(Call::SyncFolder, path)?;
        if !self.forgets.names {
            self.note(Step::SyncFolder(path.to_owned()));
        }
        Ok(())
    }
}

/// What of the unsynced a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    Nothing,
    /// All names, and files without their bytes: what journalling file systems are known for.
    Names,
    Everything,
    /// Any names; of bytes all, none, the first ones, or as many zeros.
    Anything,
}

/// The steps a disk took, in their order.
pub struct Trace(Vec<Step>);

#[derive(Clone, Copy)]
enum Entry {
    File(usize),
    Folder,
}

#[derive(Default)]
struct Folder {
    now: BTreeMap<OsString, Entry>,
    kept: BTreeMap<OsString, Entry>,
    unsynced: Vec<(OsString, Option<Entry>)>,
}

#[derive(Default)]
struct Replay {
    files: Vec<(Bytes, bool)>,
    folders: BTreeMap<PathBuf, Folder>,
}

impl Trace {
    pub fn steps(&self) -> usize {
        self.0.len()
    }

    /// Returns what had been acknowledged when the power went after so many steps.
    pub fn acknowledged(&self, steps: usize) -> i64 {
        let of = |step: &Step| if let Step::Acknowledge(through) = step { Some(*through) } else { None };
        self.0.iter().take(steps).filter_map(of).max().unwrap_or(0)
    }

    /// Returns a word for the step at which the power goes, for messages.
    pub fn step(&self, at: usize) -> String {
        self.0.get(at).map_or("the end".to_owned(), |step| match step {
            Step::Write(path, bytes) => format!("Write({}, {} bytes)", path.display(), bytes.len()),
            step => format!("{step:?}"),
        })
    }

    /// Writes into `into` what is left of the folder `top` when the power goes after so many steps.
    pub fn after_cut(&self, steps: usize, top: &Path, leaves: Leaves, random: &mut StdRng, into: &Path) {
        let mut replay = Replay::default();
        replay.folders.insert(top.to_owned(), Folder::default());
        self.0.iter().take(steps).for_each(|step| replay.take(step));
        replay.write(top, leaves, random, into);
    }
}

impl Replay {
    fn take(&mut self, step: &Step) {
        match step {
            Step::MakeFolder(path) => {
                self.name(path, Some(Entry::Folder));
                self.folders.insert(path.clone(), Folder::default());
            }
            Step::Write(path, bytes) => {
                self.files.push((bytes.clone(), false));
                self.name(path, Some(Entry::File(self.files.len() - 1)));
            }
            Step::SyncFile(path) => {
                if let Some(Entry::File(file)) = self.named(path) {
                    self.files[file].1 = true;
                }
            }
            Step::Link(from, to) => self.name(to, self.named(from)),
            Step::Rename(from, to) => {
                self.name(to, self.named(from));
                self.name(from, None);
            }
            Step::Remove(path) => self.name(path, None),
            Step::SyncFolder(path) => {
                // The top itself is somebody else's to sync, and so are those above it.
                let Some(folder) = self.folders.get_mut(path) else { return };
                folder.unsynced.clear();
                folder.kept = folder.now.clone();
            }
            Step::Acknowledge(_) => {}
        }
    }

    fn named(&self, path: &Path) -> Option<Entry> {
        self.folders.get(path.parent()?)?.now.get(path.file_name()?).copied()
    }

    fn name(&mut self, path: &Path, entry: Option<Entry>) {
        let name = path.file_name().unwrap().to_owned();
        let folder = self.folders.get_mut(path.parent().unwrap()).expect("a folder made on this disk");
        match entry {
            Some(entry) => folder.now.insert(name.clone(), entry),
            None => folder.now.remove(&name),
        };
        folder.unsynced.push((name, entry));
    }

    fn write(&self, path: &Path, leaves: Leaves, random: &mut StdRng, into: &Path) {
        fs::create_dir_all(into).unwrap();
        let folder = &self.folders[path];
        let mut left = folder.kept.clone();
        for (name, entry) in &folder.unsynced {
            let stays = match leaves {
                Leaves::Nothing => false,
                Leaves::Names | Leaves::Everything => true,
                Leaves::Anything => random.random(),
            };
            match (stays, entry) {
                (true, Some(entry)) => drop(left.insert(name.clone(), *entry)),
                (true, None) => drop(left.remove(name)),
                (false, _) => {}
            }
        }
        for (name, entry) in left {
            match entry {
                Entry::Folder => self.write(&path.join(&name), leaves, random, &into.join(&name)),
                Entry::File(file) => fs::write(into.join(&name), self.bytes(file, leaves, random)).unwrap(),
            }
        }
    }

    fn bytes(&self, file: usize, leaves: Leaves, random: &mut StdRng) -> Bytes {
        let (bytes, synced) = &self.files[file];
        match leaves {
            _ if *synced => bytes.clone(),
            Leaves::Everything => bytes.clone(),
            Leaves::Nothing | Leaves::Names => Bytes::new(),
            Leaves::Anything => match random.random_range(0..4) {
                0 => bytes.clone(),
                1 => Bytes::new(),
                2 => Bytes::from(vec![0; bytes.len()]),
                _ => bytes.slice(..random.random_range(0..=bytes.len())),
            },
        }
    }
}
