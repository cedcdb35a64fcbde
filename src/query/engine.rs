//! Runs read-only SQL over the pinned tables, bounded in memory, rows, time and concurrency, on threads of its own.
//!
//! Never writes, never reads a file or a URL that a statement names, and never runs a statement on the caller's thread:
//! a query that spins keeps a query thread and its permit, not the ingest path.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::catalog::Pin;
use super::error::QueryError;
use super::planner::Planner;

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
    runtime: Option<Runtime>,
}

/// An answer on its way. Dropping it aborts the query.
pub struct Answer {
    pub schema: SchemaRef,
    /// Ends with an error where a limit is met; the error is a [`QueryError`], see its `From<DataFusionError>`.
    pub stream: SendableRecordBatchStream,
    memory_bytes_max: usize,
}

/// Batches that a query may be ahead of its reader.
const BATCHES_AHEAD_MAX: usize = 2;

/// Statements are bounded in depth, but later stages recurse with large frames. Reserved, not committed.
const STACK_BYTES: usize = 64 << 20;

impl Engine {
    /// Makes an engine. `views` are plain views, name and SELECT, each of which may read the tables and the views before it.
    ///
    /// # Errors
    /// A view that does not parse, or threads that cannot be started. A view over a table that is missing is no error
    /// until a query reads that view.
    pub fn new(settings: Settings, pin: Pin, views: Vec<(String, String)>) -> Result<Self, QueryError> {
        let threads = available_parallelism().map_or(2, NonZeroUsize::get);
        let planner = Planner::new(settings.clone(), threads, pin, views)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|source| QueryError::Start { source })?;
        Ok(Engine {
            planner: Arc::new(planner),
            permits: Arc::new(Semaphore::new(settings.concurrency_max.clamp(1, Semaphore::MAX_PERMITS))),
            settings,
            runtime: Some(runtime),
        })
    }

    /// Runs one statement; returns when it is planned and has begun.
    pub async fn run(&self, sql: &str) -> Result<Answer, QueryError> {
        let Settings { timeout, concurrency_max, statement_bytes_max, memory_bytes_max, .. } = self.settings;
        let deadline = Instant::now() + timeout;
        if sql.len() > statement_bytes_max {
            return Err(QueryError::StatementBytes { bytes: sql.len(), max: statement_bytes_max });
        }
        let permit = match timeout_at(deadline, self.permits.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(QueryError::Lost),
            Err(_elapsed) => return Err(QueryError::Busy { max: concurrency_max, waited: timeout }),
        };
        let (begun, begins) = oneshot::channel();
        let (batches, answer) = mpsc::channel(BATCHES_AHEAD_MAX);
        let Some(runtime) = &self.runtime else { return Err(QueryError::Lost) };
        let query = Query { planner: self.planner.clone(), sql: sql.to_owned(), deadline, permit };
        let task = AbortOnDrop(runtime.spawn(query.drive(begun, batches)).abort_handle());
        let schema = match timeout_at(deadline, begins).await {
            Ok(Ok(schema)) => schema?,
            Ok(Err(_dropped)) => return Err(QueryError::Lost),
            Err(_elapsed) => return Err(QueryError::Timeout { max: timeout }),
        };
        let feed = Feed { answer, deadline, timeout, _task: task };
        let stream = Box::pin(RecordBatchStreamAdapter::new(schema.clone(), stream::unfold(Some(feed), Feed::next)));
        Ok(Answer { schema, stream, memory_bytes_max })
    }
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

/// One statement being run. Holds the permit until it has really ended, also when nobody waits for it any more.
struct Query {
    planner: Arc<Planner>,
    sql: String,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
}

/// What travels from the query to its reader. The end is said, so that a query that dies is not a short answer.
enum Message {
    Batch(RecordBatch),
    Failed(QueryError),
    End,
}

impl Query {
    async fn drive(self, begun: oneshot::Sender<Result<SchemaRef, QueryError>>, batches: mpsc::Sender<Message>) {
        let Settings { timeout, .. } = *self.planner.settings();
        let planned = timeout_at(self.deadline, self.planner.begin(&self.sql)).await;
        let stream = match planned.unwrap_or(Err(QueryError::Timeout { max: timeout })) {
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
            let last = match pump(stream, self.planner.settings(), &batches).await {
                Ok(()) => Message::End,
                Err(error) => Message::Failed(error),
            };
            // A reader that went away needs no end.
            let _ = batches.send(last).await;
        };
        // The reader watches the same deadline, so that one who is slow need not be told.
        let _ = timeout_at(self.deadline, answered).await;
        drop(self.permit);
    }
}

async fn pump(
    mut stream: SendableRecordBatchStream,
    settings: &Settings,
    batches: &mpsc::Sender<Message>,
) -> Result<(), QueryError> {
    let mut rows = 0_usize;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|source| QueryError::of_execution(source, settings.memory_bytes_max))?;
        rows = rows.saturating_add(batch.num_rows());
        if rows > settings.rows_max {
            return Err(QueryError::Rows { max: settings.rows_max });
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
    _task: AbortOnDrop,
}

impl Feed {
    async fn next(feed: Option<Feed>) -> Option<(Result<RecordBatch, DataFusionError>, Option<Feed>)> {
        let mut feed = feed?;
        match timeout_at(feed.deadline, feed.answer.recv()).await {
            Ok(Some(Message::Batch(batch))) => Some((Ok(batch), Some(feed))),
            Ok(Some(Message::End)) => None,
            Ok(Some(Message::Failed(error))) => Some((Err(error.into()), None)),
            Ok(None) if Instant::now() < feed.deadline => Some((Err(QueryError::Lost.into()), None)),
            Ok(None) | Err(_) => Some((Err(QueryError::Timeout { max: feed.timeout }.into()), None)),
        }
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
