//! Runs read-only SQL over the pinned tables, bounded in memory, rows, time and concurrency, on threads of its own.
//!
//! Never writes, never reads a file or a URL that a statement names, and never runs a statement on the caller's thread:
//! a query that spins keeps a query thread and its permit, not the ingest path.
//!
//! What the limits do not cover: an expression may allocate outside DataFusion's memory pool. The functions that turn a
//! few bytes of SQL into any number of bytes are therefore not offered (see `EXPANDING_FUNCTIONS`).

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider, TableProvider,
};
use datafusion::common::DataFusionError;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::ViewTable;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use futures::{StreamExt, stream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::corrected::{self, EMITTED};
use super::error::QueryError;
use super::{register_functions, statement};

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

/// Gives the tables as of now, one consistent set; called once for every query.
pub type Pin = Arc<dyn Fn() -> Vec<(String, Arc<dyn TableProvider>)> + Send + Sync>;

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

const CATALOG: &str = "bellwether";
const SCHEMA: &str = "public";

/// Batches that a query may be ahead of its reader.
const BATCHES_AHEAD_MAX: usize = 2;

/// Statements are bounded in depth, but later stages recurse with large frames. Reserved, not committed.
const STACK_BYTES: usize = 64 << 20;

/// Names of the greatest consumers of memory in an out-of-memory message.
const CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// Functions whose result can be of any size whatever the size of their arguments.
const EXPANDING_FUNCTIONS: [&str; 7] =
    ["repeat", "lpad", "rpad", "range", "generate_series", "array_repeat", "array_resize"];

/// How near a name must be to be offered in place of an unknown one, as Jaro-Winkler similarity.
const SIMILARITY_MIN: f64 = 0.8;

impl Engine {
    /// Makes an engine. `views` are plain views, name and SELECT, each of which may read the tables and the views before it.
    ///
    /// # Errors
    /// A view that does not parse, or threads that cannot be started. A view over a table that is missing is no error
    /// until a query reads that view.
    pub fn new(settings: Settings, pin: Pin, views: Vec<(String, String)>) -> Result<Self, QueryError> {
        let threads = available_parallelism().map_or(2, NonZeroUsize::get);
        let base = base_state(&settings, threads)?;
        let views = views
            .into_iter()
            .map(|(name, sql)| View::read(&base, name, sql, settings.statement_bytes_max))
            .collect::<Result<Vec<_>, _>>()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|source| QueryError::Start { source })?;
        Ok(Engine {
            planner: Arc::new(Planner { base, pin, views, settings: settings.clone() }),
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
        let timeout = self.planner.settings.timeout;
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
            let last = match pump(stream, &self.planner.settings, &batches).await {
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

/// A plain view, parsed once.
struct View {
    name: String,
    sql: String,
    /// The names it reads.
    reads: BTreeSet<String>,
}

impl View {
    fn read(base: &SessionState, name: String, sql: String, bytes_max: usize) -> Result<Self, QueryError> {
        let parsed = statement::parse(&sql, bytes_max)?;
        match references(base, &parsed) {
            Ok(reads) => Ok(View { name, sql, reads }),
            Err(source) => Err(QueryError::View { name, source }),
        }
    }
}

/// Turns a statement into a running plan.
struct Planner {
    base: SessionState,
    pin: Pin,
    views: Vec<View>,
    settings: Settings,
}

impl Planner {
    async fn begin(&self, sql: &str) -> Result<SendableRecordBatchStream, QueryError> {
        let statement = statement::parse(sql, self.settings.statement_bytes_max)?;
        let reads = references(&self.base, &statement).map_err(|source| QueryError::Plan { source })?;
        let (state, tables) = self.session(&reads).await?;
        let plan = match state.statement_to_plan(statement).await {
            Ok(plan) => plan,
            Err(source) => return Err(unknown_table(&reads, &tables).unwrap_or(QueryError::Plan { source })),
        };
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|_| QueryError::Refused { kind: "a statement that writes inside a query".to_owned() })?;
        let frame = DataFrame::new(state, plan);
        frame.execute_stream().await.map_err(|source| match source.find_root() {
            DataFusionError::Plan(_) | DataFusionError::SchemaError(..) => QueryError::Plan { source },
            _ => QueryError::of_execution(source, self.settings.memory_bytes_max),
        })
    }

    /// Makes the session of one query: the pinned tables and those views that it reads, and the names of all of them.
    async fn session(&self, reads: &BTreeSet<String>) -> Result<(SessionState, Vec<String>), QueryError> {
        let schema = Arc::new(MemorySchemaProvider::new());
        let catalog = Arc::new(MemoryCatalogProvider::new());
        let catalogs = Arc::new(MemoryCatalogProviderList::new());
        let set_up = |source| QueryError::SetUp { source };
        catalog.register_schema(SCHEMA, schema.clone()).map_err(set_up)?;
        catalogs.register_catalog(CATALOG.to_owned(), catalog);
        let tables = (self.pin)();
        let newest = corrected::newest(&tables);
        for (name, table) in tables {
            let is_corrected = newest.iter().any(|(corrected, _)| *corrected == name);
            let name = if is_corrected { format!("{name}{EMITTED}") } else { name };
            schema.register_table(name, table).map_err(set_up)?;
        }
        let state = SessionStateBuilder::new_from_existing(self.base.clone()).with_catalog_list(catalogs).build();
        let is_listing = reads.contains(INFORMATION_SCHEMA);
        let wanted = self.wanted_views(reads);
        for (name, sql) in newest.iter().filter(|(name, _)| is_listing || wanted.contains(name.as_str())) {
            let plan = state.create_logical_plan(sql).await.map_err(set_up)?;
            let table = Arc::new(ViewTable::new(plan, Some(sql.clone())));
            schema.register_table(name.clone(), table).map_err(set_up)?;
        }
        for view in &self.views {
            let is_wanted = wanted.contains(view.name.as_str());
            if (is_wanted || is_listing) && !schema.table_exist(&view.name) {
                match state.create_logical_plan(&view.sql).await {
                    Ok(plan) => {
                        let table = Arc::new(ViewTable::new(plan, Some(view.sql.clone())));
                        schema.register_table(view.name.clone(), table).map_err(set_up)?;
                    }
                    Err(source) if is_wanted => return Err(QueryError::View { name: view.name.clone(), source }),
                    // A listing shows what can be read now.
                    Err(_) => {}
                }
            }
        }
        let mut names = schema.table_names();
        names.extend(self.views.iter().map(|view| view.name.clone()));
        names.extend(newest.into_iter().map(|(name, _)| name));
        Ok((state, names))
    }

    /// Returns the views that a statement reads, directly or through others. A view reads only views before it.
    fn wanted_views<'a>(&'a self, reads: &'a BTreeSet<String>) -> BTreeSet<&'a str> {
        let mut wanted: BTreeSet<&str> = reads.iter().map(String::as_str).collect();
        for view in self.views.iter().rev() {
            if wanted.contains(view.name.as_str()) {
                wanted.extend(view.reads.iter().map(String::as_str));
            }
        }
        wanted
    }
}

/// Stands among the names that a statement reads for all of `information_schema`.
const INFORMATION_SCHEMA: &str = "information_schema";

fn base_state(settings: &Settings, threads: usize) -> Result<SessionState, QueryError> {
    let set_up = |source| QueryError::SetUp { source };
    let config = SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_target_partitions(threads);
    // Greedy: one large query may use what no other uses. No spilling: the disk belongs to the store's commits, and a
    // query that outgrows memory had better say so within a second than fill the disk for a minute.
    let pool = TrackConsumersPool::new(GreedyMemoryPool::new(settings.memory_bytes_max), CONSUMERS_NAMED);
    let environment = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build_arc()
        .map_err(set_up)?;
    let files = url::Url::parse("file:///").expect("a constant URL");
    environment.deregister_object_store(&files).map_err(set_up)?;
    let state =
        SessionStateBuilder::new().with_config(config).with_runtime_env(environment).with_default_features().build();
    let session = SessionContext::new_with_state(state);
    register_functions(&session);
    EXPANDING_FUNCTIONS.iter().for_each(|name| session.deregister_udf(name));
    Ok(session.state())
}

/// Returns the names of the tables a statement reads; any of `information_schema` counts as that.
fn references(state: &SessionState, statement: &Statement) -> Result<BTreeSet<String>, DataFusionError> {
    let named = state.resolve_table_references(statement)?;
    Ok(named
        .iter()
        .map(|name| if name.schema() == Some(INFORMATION_SCHEMA) { INFORMATION_SCHEMA } else { name.table() })
        .map(str::to_owned)
        .collect())
}

/// Tells which table of a statement that did not plan is unknown, with the nearest that is known.
fn unknown_table(reads: &BTreeSet<String>, tables: &[String]) -> Option<QueryError> {
    let name = reads.iter().find(|name| *name != INFORMATION_SCHEMA && !tables.contains(name))?;
    let nearest = tables
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((_, known)) => format!("did you mean {known:?}"),
        None => "SHOW TABLES lists them".to_owned(),
    };
    Some(QueryError::UnknownTable { name: name.clone(), hint })
}

#[cfg(test)]
mod tests;
