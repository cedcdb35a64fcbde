//! Runs read-only SQL over the pinned tables, bounded in memory, rows, time and concurrency, on threads of its own.
//!
//! Never writes, never reads a file or a URL that a statement names, and never runs a statement on the caller's thread:
//! a query that spins keeps a query thread and its permit, not the ingest path.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use arrow::datatypes::{FieldRef, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, ParamValues};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::access::{Grant, Limits, User};
use super::catalog::Pin;
use super::error::QueryError;
use super::parameters::Types;
use super::planner::Planner;
use super::running::{Asker, Outcome, Running, Surface, Ticket};

/// What a query may use. All inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Memory of all queries together, and of one collected answer.
    pub memory_bytes_max: usize,
    /// Rows of one answer.
    pub rows_max: usize,
    /// From the arrival of a statement to the last row of its answer.
    pub timeout: Duration,
    /// Queries that run at once; others wait for their turn within `timeout`.
    pub concurrency_max: usize,
    pub statement_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            memory_bytes_max: 1 << 30,
            rows_max: 1_000_000,
            timeout: Duration::from_secs(30),
            concurrency_max: 4,
            statement_bytes_max: 64 << 10,
        }
    }
}

/// Runs queries. Dropping it aborts those that run; it may be dropped anywhere, also on an async thread.
pub struct Engine {
    planner: Arc<Planner>,
    settings: Settings,
    permits: Arc<Semaphore>,
    /// Of statements that are only described.
    describing: Semaphore,
    /// Whoever asks where nobody in particular is known.
    everyone: Arc<User>,
    runtime: Option<Runtime>,
}

/// One statement, with what stands for its `$1`, `$2`, …
#[derive(Clone, Debug, Default)]
pub struct Question {
    pub sql: String,
    pub types: Types,
    pub parameters: Option<ParamValues>,
    /// A shorter time than what the user's queries may take.
    pub timeout: Option<Duration>,
}

impl From<&str> for Question {
    fn from(sql: &str) -> Self {
        Question { sql: sql.to_owned(), ..Question::default() }
    }
}

/// What a statement answers with, and the types of its parameters, where they follow from it.
#[derive(Clone, Debug)]
pub struct Described {
    pub schema: SchemaRef,
    pub parameters: Vec<Option<FieldRef>>,
}

/// An answer on its way. Dropping it aborts the query.
pub struct Answer {
    pub schema: SchemaRef,
    /// Ends with an error where a limit is met; the error is a [`QueryError`], see its `From<DataFusionError>`.
    pub stream: SendableRecordBatchStream,
    memory_bytes_max: usize,
}

/// The name of whoever asks where users are not told apart.
const EVERYONE: &str = "everyone";

/// Batches that a query may be ahead of its reader.
const BATCHES_AHEAD_MAX: usize = 2;

/// Statements are bounded in depth, but later stages recurse with large frames. Reserved, not committed.
const STACK_BYTES: usize = 64 << 20;

/// Most threads of the queries.
const THREADS_MAX: usize = 64;

/// How much the operating system prefers others to the queries' threads: what comes in is not to wait for what is asked.
const NICENESS: libc::c_int = 5;

/// Lets others go before the calling thread.
fn step_back() {
    // SAFETY: takes numbers only; 0 is the calling thread.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    if refused != 0 {
        debug!("the operating system does not let queries step back");
    }
}

impl Engine {
    /// Makes an engine. `views` are plain views, name and SELECT, each of which may read the tables and the views before it.
    ///
    /// # Errors
    /// A view that does not parse, or threads that cannot be started. A view over a table that is missing is no error
    /// until a query reads that view.
    pub fn new(settings: Settings, pin: Pin, views: Vec<(String, String)>) -> Result<Self, QueryError> {
        let threads = available_parallelism().map_or(2, NonZeroUsize::get);
        let planner = Planner::new(settings.clone(), threads, pin, views)?;
        // A query that computes without a pause keeps as many threads as there are cores; more than can run at once, with
        // one to spare, so that those that come after are at least planned, and refused or ended in time.
        let workers = threads.saturating_mul(settings.concurrency_max).min(THREADS_MAX).max(threads) + 1;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .on_thread_start(step_back)
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|source| QueryError::Start { source })?;
        let nobody = Grant { name: EVERYONE.to_owned(), is_admin: true, ..Grant::default() };
        Ok(Engine {
            everyone: Arc::new(User::new(nobody, &settings, planner.environment())?),
            planner: Arc::new(planner),
            describing: Semaphore::new(threads),
            permits: Arc::new(Semaphore::new(settings.concurrency_max.clamp(1, Semaphore::MAX_PERMITS))),
            settings,
            runtime: Some(runtime),
        })
    }

    /// Admits somebody: their queries share what they are granted.
    ///
    /// # Errors
    /// The environment for their queries cannot be made.
    pub fn admit(&self, grant: Grant) -> Result<Arc<User>, QueryError> {
        Ok(Arc::new(User::new(grant, &self.settings, self.planner.environment())?))
    }

    /// Returns whoever asks where users are not told apart: they may read everything.
    pub fn everyone(&self) -> Arc<User> {
        self.everyone.clone()
    }

    /// Returns the queries that run.
    pub fn running(&self) -> &Arc<Running> {
        &self.planner.running
    }

    /// Runs one statement of this program's own user; returns when it is planned and has begun.
    pub async fn run(&self, sql: &str) -> Result<Answer, QueryError> {
        let asker = Asker { user: self.everyone(), surface: Surface::Local, client: None, session: None };
        self.ask(&asker, sql.into()).await
    }

    /// Runs one statement; returns when it is planned and has begun.
    pub async fn ask(&self, asker: &Asker, question: Question) -> Result<Answer, QueryError> {
        let timeout = question.timeout.unwrap_or(Duration::MAX).min(asker.user.limits.timeout);
        let limits = Limits { timeout, ..asker.user.limits };
        let mut ticket = self.planner.running.begin(asker, &question.sql);
        let begun = tokio::select! {
            begun = self.begin(asker, question, limits) => begun,
            () = ticket.killed() => Err(QueryError::Killed),
        };
        let Begun { schema, answer, deadline, task } =
            begun.inspect_err(|error| ticket.ended(Outcome::Failed(error)))?;
        ticket.ends(task.0.clone());
        let feed = Feed { answer, deadline, timeout, ticket, _task: task };
        let stream = Box::pin(RecordBatchStreamAdapter::new(schema.clone(), stream::unfold(Some(feed), Feed::next)));
        Ok(Answer { schema, stream, memory_bytes_max: limits.memory_bytes_max })
    }

    /// Says what a statement answers with, without running it.
    pub async fn describe(&self, asker: &Asker, question: Question) -> Result<Described, QueryError> {
        let described = self.try_describe(asker, &question).await;
        if let Err(error) = &described {
            // One that is refused here never runs, and is to be heard of all the same.
            self.planner.running.begin(asker, &question.sql).ended(Outcome::Failed(error));
        }
        described
    }

    async fn try_describe(&self, asker: &Asker, question: &Question) -> Result<Described, QueryError> {
        let timeout = asker.user.limits.timeout;
        let _turn = match tokio::time::timeout(timeout, self.describing.acquire()).await {
            Ok(turn) => turn.map_err(|_closed| QueryError::Lost)?,
            Err(_elapsed) => {
                return Err(QueryError::Busy { max: self.describing.available_permits(), waited: timeout });
            }
        };
        let Some(runtime) = &self.runtime else { return Err(QueryError::Lost) };
        let (planner, asker, question) = (self.planner.clone(), asker.clone(), question.clone());
        // Planning may take long, and much of the stack: not on a thread that serves connections.
        let mut task = runtime.spawn(async move { planner.describe(&asker, &question).await });
        let _abort = AbortOnDrop(task.abort_handle());
        match tokio::time::timeout(timeout, &mut task).await {
            Ok(described) => described.unwrap_or(Err(QueryError::Lost)),
            Err(_elapsed) => Err(QueryError::Timeout { max: timeout }),
        }
    }

    async fn begin(&self, asker: &Asker, question: Question, limits: Limits) -> Result<Begun, QueryError> {
        let (statement_bytes_max, timeout) = (self.settings.statement_bytes_max, limits.timeout);
        let deadline = Instant::now() + timeout;
        if question.sql.len() > statement_bytes_max {
            return Err(QueryError::StatementBytes { bytes: question.sql.len(), max: statement_bytes_max });
        }
        let permit = |of: &Arc<Semaphore>, max: usize| {
            let permit = timeout_at(deadline, of.clone().acquire_owned());
            async move {
                match permit.await {
                    Ok(Ok(permit)) => Ok(permit),
                    Ok(Err(_closed)) => Err(QueryError::Lost),
                    Err(_elapsed) => Err(QueryError::Busy { max, waited: timeout }),
                }
            }
        };
        // First one's own turn: who has many queries must not hold places that others wait for.
        let own = permit(&asker.user.permits, limits.concurrency_max).await?;
        let shared = permit(&self.permits, self.settings.concurrency_max).await?;
        let (begun, begins) = oneshot::channel();
        let (batches, answer) = mpsc::channel(BATCHES_AHEAD_MAX);
        let Some(runtime) = &self.runtime else { return Err(QueryError::Lost) };
        let (planner, asker) = (self.planner.clone(), asker.clone());
        let query = Query { planner, asker, question, limits, deadline, _permits: [own, shared] };
        let task = AbortOnDrop(runtime.spawn(query.drive(begun, batches)).abort_handle());
        let schema = match timeout_at(deadline, begins).await {
            Ok(Ok(schema)) => schema?,
            Ok(Err(_dropped)) => return Err(QueryError::Lost),
            Err(_elapsed) => return Err(QueryError::Timeout { max: timeout }),
        };
        Ok(Begun { schema, answer, deadline, task })
    }
}

/// A query that is planned and runs.
struct Begun {
    schema: SchemaRef,
    answer: mpsc::Receiver<Message>,
    deadline: Instant,
    task: AbortOnDrop,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for threads is what an async caller must not do.
            runtime.shutdown_background();
        }
    }
}

impl Answer {
    /// Collects all rows, up to the limit of memory.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, QueryError> {
        let (mut batches, mut bytes) = (Vec::new(), 0_usize);
        while let Some(batch) = self.stream.next().await {
            let batch = batch?;
            bytes = bytes.saturating_add(batch.get_array_memory_size());
            if bytes > self.memory_bytes_max {
                return Err(QueryError::AnswerBytes { max: self.memory_bytes_max });
            }
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// One statement being run. Holds the permits until it has really ended, also when nobody waits for it any more.
struct Query {
    planner: Arc<Planner>,
    asker: Asker,
    question: Question,
    limits: Limits,
    deadline: Instant,
    _permits: [OwnedSemaphorePermit; 2],
}

/// What travels from the query to its reader. The end is said, so that a query that dies is not a short answer.
enum Message {
    Batch(RecordBatch),
    Failed(QueryError),
    End,
}

impl Query {
    async fn drive(self, begun: oneshot::Sender<Result<SchemaRef, QueryError>>, batches: mpsc::Sender<Message>) {
        let planned = timeout_at(self.deadline, self.planner.begin(&self.asker, self.question)).await;
        let stream = match planned.unwrap_or(Err(QueryError::Timeout { max: self.limits.timeout })) {
            Ok(stream) => stream,
            Err(error) => {
                // A reader that went away needs no answer.
                let _ = begun.send(Err(error));
                return;
            }
        };
        if begun.send(Ok(stream.schema())).is_err() {
            return;
        }
        let answered = async {
            let last = match pump(stream, self.limits, &batches).await {
                Ok(()) => Message::End,
                Err(error) => Message::Failed(error),
            };
            // A reader that went away needs no end.
            let _ = batches.send(last).await;
        };
        // The reader watches the same deadline, so that one who is slow need not be told.
        let _ = timeout_at(self.deadline, answered).await;
    }
}

async fn pump(
    mut stream: SendableRecordBatchStream,
    limits: Limits,
    batches: &mpsc::Sender<Message>,
) -> Result<(), QueryError> {
    let mut rows = 0_usize;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|source| QueryError::of_execution(source, limits.memory_bytes_max))?;
        rows = rows.saturating_add(batch.num_rows());
        if rows > limits.rows_max {
            return Err(QueryError::Rows { max: limits.rows_max });
        }
        if batches.send(Message::Batch(batch)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The reader's end of a query.
struct Feed {
    answer: mpsc::Receiver<Message>,
    deadline: Instant,
    timeout: Duration,
    ticket: Ticket,
    _task: AbortOnDrop,
}

impl Feed {
    async fn next(feed: Option<Feed>) -> Option<(Result<RecordBatch, DataFusionError>, Option<Feed>)> {
        let mut feed = feed?;
        let message = tokio::select! {
            // A query that is ended has its channel closed, too: why is said first.
            biased;
            () = feed.ticket.killed() => Ok(Some(Message::Failed(QueryError::Killed))),
            message = timeout_at(feed.deadline, feed.answer.recv()) => message,
        };
        let failed = match message {
            Ok(Some(Message::Batch(batch))) => {
                feed.ticket.count(batch.num_rows());
                return Some((Ok(batch), Some(feed)));
            }
            Ok(Some(Message::End)) => {
                feed.ticket.ended(Outcome::Ok);
                return None;
            }
            Ok(Some(Message::Failed(error))) => error,
            Ok(None) if Instant::now() < feed.deadline => QueryError::Lost,
            Ok(None) | Err(_) => QueryError::Timeout { max: feed.timeout },
        };
        feed.ticket.ended(Outcome::Failed(&failed));
        Some((Err(failed.into()), None))
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
