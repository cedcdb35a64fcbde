//! An object store that fails as told: before an operation, after it (it happened, and nobody says so), later (it will
//! happen, and the error came first); or is slow. Everything else is the real store beneath.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use futures::{FutureExt, TryFutureExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{Notify, Semaphore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    PutFile,
    PutLogEntry,
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It does not happen.
    Before,
    /// It happens, and the answer is lost.
    After,
    /// The answer is an error, and it happens so many operations later. Reads cannot; for them it is `Before`.
    Late(usize),
    /// It waits until [`Faults::release`] or [`Faults::let_one`] is called.
    Hang,
}

type Decide = Box<dyn FnMut(Operation, &Path) -> Fault + Send>;

/// What goes wrong, shared by all stores of one test so that it outlives a restart.
pub struct Faults {
    plan: Mutex<Plan>,
    /// Told whenever an operation begins to wait.
    pub waiting: Notify,
    gate: Semaphore,
}

struct Plan {
    decide: Decide,
    operations: usize,
    late: VecDeque<(usize, Path, PutPayload, PutOptions)>,
    landed_late: usize,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

impl Faults {
    pub fn none() -> Arc<Faults> {
        let plan = Plan { decide: Box::new(|_, _| Fault::None), operations: 0, late: VecDeque::new(), landed_late: 0 };
        Arc::new(Faults { plan: Mutex::new(plan), waiting: Notify::new(), gate: Semaphore::new(0) })
    }

    /// From now on `decide` says what becomes of each operation.
    pub fn decide(&self, decide: impl FnMut(Operation, &Path) -> Fault + Send + 'static) {
        self.plan.lock().unwrap().decide = Box::new(decide);
    }

    /// From now on nothing goes wrong any more, except what is still to land late.
    pub fn heal(&self) {
        self.decide(|_, _| Fault::None);
    }

    /// Lets everything go on that waits, and that will.
    pub fn release(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Lets one operation go on that waits.
    pub fn let_one(&self) {
        self.gate.add_permits(1);
    }

    /// Returns how many writes happened after they had been reported as failed.
    pub fn landed_late(&self) -> usize {
        self.plan.lock().unwrap().landed_late
    }

    pub fn wrap(self: &Arc<Faults>, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Faulty { inner, faults: self.clone() })
    }

    /// Returns what becomes of an operation, and the late writes that are due before it.
    fn next(&self, operation: Operation, path: &Path) -> (Fault, Vec<(Path, PutPayload, PutOptions)>) {
        let mut plan = self.plan.lock().unwrap();
        plan.operations += 1;
        let now = plan.operations;
        let mut due = Vec::new();
        plan.late.retain(|(at, path, payload, options)| {
            let waits = *at > now;
            if !waits {
                due.push((path.clone(), payload.clone(), options.clone()));
            }
            waits
        });
        ((plan.decide)(operation, path), due)
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Faults>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "faulty", source: "503 Service Unavailable: SlowDown".into() }
}

impl Faulty {
    async fn fault(&self, operation: Operation, path: &Path) -> Fault {
        let (fault, due) = self.faults.next(operation, path);
        for (path, payload, options) in due {
            // Counted first: whoever reads here may be dropped in the midst of it, and the write goes on all the same.
            self.faults.plan.lock().unwrap().landed_late += 1;
            if self.inner.put_opts(&path, payload, options).await.is_err() {
                self.faults.plan.lock().unwrap().landed_late -= 1;
            }
        }
        if fault == Fault::Hang {
            self.faults.waiting.notify_one();
            self.faults.gate.acquire().await.expect("the gate is never closed").forget();
        }
        fault
    }

    /// Reads under what was decided.
    async fn read<T>(&self, path: &Path, read: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match self.fault(Operation::Read, path).await {
            Fault::Before | Fault::Late(_) => Err(unavailable()),
            Fault::After => read.await.and(Err(unavailable())),
            Fault::None | Fault::Hang => read.await,
        }
    }

    fn again(&self) -> Faulty {
        Faulty { inner: self.inner.clone(), faults: self.faults.clone() }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let log = location.as_ref().contains("_delta_log");
        let operation = if log { Operation::PutLogEntry } else { Operation::PutFile };
        match self.fault(operation, location).await {
            Fault::Before => Err(unavailable()),
            Fault::Late(operations) => {
                let mut plan = self.faults.plan.lock().unwrap();
                let due = plan.operations + operations;
                plan.late.push_back((due, location.clone(), payload, opts));
                Err(unavailable())
            }
            Fault::After => self.inner.put_opts(location, payload, opts).await.and(Err(unavailable())),
            Fault::None | Fault::Hang => self.inner.put_opts(location, payload, opts).await,
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.read(location, self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.again(), prefix.cloned());
        let whole = async move {
            let path = prefix.clone().unwrap_or_default();
            this.read(&path, this.inner.list(prefix.as_ref()).try_collect::<Vec<_>>()).await
        };
        whole.map_ok(|found| futures::stream::iter(found.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix, offset) = (self.again(), prefix.cloned(), offset.clone());
        let whole = async move {
            let listed = this.inner.list_with_offset(prefix.as_ref(), &offset).try_collect::<Vec<_>>();
            this.read(&offset, listed).await
        };
        whole.map_ok(|found| futures::stream::iter(found.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        self.read(&path, self.inner.list_with_delimiter(prefix).boxed()).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
