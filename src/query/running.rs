//! The queries that run: who asked them, how far they are, and how to end one. Each that ends is written to the log.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::logical_expr::Expr;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::info;

use super::access::User;
use super::catalog::SystemTable;
use super::error::QueryError;

/// The way a statement came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    Http,
    Postgres,
    Flight,
    /// From within this program.
    Local,
}

impl Surface {
    pub fn as_str(self) -> &'static str {
        match self {
            Surface::Http => "http",
            Surface::Postgres => "postgres",
            Surface::Flight => "flight",
            Surface::Local => "local",
        }
    }
}

/// Who asks, from where.
#[derive(Clone, Debug)]
pub struct Asker {
    pub user: Arc<User>,
    pub surface: Surface,
    pub client: Option<SocketAddr>,
    /// Tells the connections of a surface apart, where it has any that last.
    pub session: Option<u32>,
}

/// How a query ended.
#[derive(Debug)]
pub enum Outcome<'a> {
    Ok,
    Failed(&'a QueryError),
    /// Its reader went away.
    Abandoned,
}

/// What is told of a query to those who watch.
pub enum Change<'a> {
    Began,
    Ended { outcome: Outcome<'a>, elapsed: Duration },
}

/// Told of every query that begins, and once how it ended.
pub type Watcher = Box<dyn Fn(Change<'_>) + Send + Sync>;

/// The queries that run now.
#[derive(Default)]
pub struct Running {
    last: AtomicU64,
    queries: Mutex<BTreeMap<u64, Entry>>,
    watcher: OnceLock<Watcher>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("queries", &self.queries).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Entry {
    asker: Asker,
    sql: String,
    since: Instant,
    rows: Arc<AtomicU64>,
    kill: watch::Sender<bool>,
    /// What computes its answer, once it is planned.
    task: Option<AbortHandle>,
}

impl Entry {
    /// Ends it, also where nobody reads its answer.
    fn end(&self) -> bool {
        self.task.as_ref().inspect(|task| task.abort());
        self.kill.send_replace(true);
        true
    }
}

impl Running {
    /// Has somebody watch; the first one stays.
    pub fn watched_by(&self, watcher: Watcher) {
        let _ = self.watcher.set(watcher);
    }

    fn tell(&self, change: Change<'_>) {
        if let Some(watcher) = self.watcher.get() {
            watcher(change);
        }
    }

    /// Takes up a query; it is one of those that run until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>, asker: &Asker, sql: &str) -> Ticket {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (kill, killed) = watch::channel(false);
        let (since, rows) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let entry = Entry { asker: asker.clone(), sql: sql.to_owned(), since, rows: rows.clone(), kill, task: None };
        self.queries().insert(id, entry);
        self.tell(Change::Began);
        Ticket { running: self.clone(), id, rows, killed, has_ended: false }
    }

    /// Ends a query; returns whether it ran and was theirs to end.
    pub fn kill(&self, id: u64, by: &User) -> bool {
        let queries = self.queries();
        let query = queries.get(&id).filter(|query| by.is_admin || query.asker.user.name == by.name);
        query.is_some_and(Entry::end)
    }

    /// Returns how many of a surface run.
    pub fn count(&self, surface: Surface) -> usize {
        self.queries().values().filter(|query| query.asker.surface == surface).count()
    }

    /// Ends whatever a connection of a surface has running.
    pub fn kill_session(&self, surface: Surface, session: u32) {
        let of_session = |query: &&Entry| query.asker.surface == surface && query.asker.session == Some(session);
        for query in self.queries().values().filter(of_session) {
            query.end();
        }
    }

    /// Returns `system.queries`: those of one user, or of all where they are an admin.
    pub(super) fn table(self: &Arc<Self>, seen_by: &User) -> SystemTable {
        let text = |name: &str| Field::new(name, DataType::Utf8, false);
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            text("user"),
            text("surface"),
            Field::new("client", DataType::Utf8, true),
            Field::new("seconds", DataType::Float64, false),
            Field::new("rows", DataType::Int64, false),
            text("sql"),
        ]));
        let (running, name, all) = (self.clone(), seen_by.name.clone(), seen_by.is_admin);
        let rows = {
            let schema = schema.clone();
            move |_: &[Expr]| {
                let queries = running.queries();
                let seen: Vec<_> = queries.iter().filter(|(_, one)| all || one.asker.user.name == name).collect();
                let text = |of: &dyn Fn(&Entry) -> String| -> ArrayRef {
                    Arc::new(StringArray::from_iter_values(seen.iter().map(|(_, query)| of(query))))
                };
                let clients = seen.iter().map(|(_, query)| query.asker.client.map(|client| client.to_string()));
                let columns: Vec<ArrayRef> = vec![
                    Arc::new(Int64Array::from_iter_values(seen.iter().map(|(id, _)| **id as i64))),
                    text(&|query| query.asker.user.name.clone()),
                    text(&|query| query.asker.surface.as_str().to_owned()),
                    Arc::new(clients.collect::<StringArray>()),
                    Arc::new(Float64Array::from_iter_values(seen.iter().map(|(_, q)| q.since.elapsed().as_secs_f64()))),
                    Arc::new(Int64Array::from_iter_values(
                        seen.iter().map(|(_, query)| query.rows.load(Ordering::Relaxed) as i64),
                    )),
                    text(&|query| query.sql.clone()),
                ];
                RecordBatch::try_new(schema.clone(), columns)
            }
        };
        SystemTable { name: "queries", schema, rows: Arc::new(rows) }
    }

    fn queries(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        // Entries come and go in one piece, so a panic elsewhere leaves nothing half-done.
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One query that runs; dropped where it ends, whatever the way.
#[derive(Debug)]
pub(super) struct Ticket {
    running: Arc<Running>,
    id: u64,
    rows: Arc<AtomicU64>,
    killed: watch::Receiver<bool>,
    has_ended: bool,
}

impl Ticket {
    pub fn count(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Tells what computes the answer.
    pub fn ends(&self, task: AbortHandle) {
        if let Some(entry) = self.running.queries().get_mut(&self.id) {
            entry.task = Some(task);
        }
    }

    /// Waits for somebody to end the query.
    pub async fn killed(&mut self) {
        if self.killed.wait_for(|&killed| killed).await.is_err() {
            // The entry lives as long as the ticket: nobody is left to say it.
            std::future::pending().await
        }
    }

    /// Says how it ended; the first time counts. Told nothing, its reader had gone away.
    pub fn ended(&mut self, outcome: Outcome<'_>) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let Some(Entry { asker, sql, since, rows, .. }) = self.running.queries().remove(&self.id) else { return };
        let elapsed = since.elapsed();
        info!(
            target: "audit",
            id = self.id,
            user = asker.user.name,
            surface = asker.surface.as_str(),
            client = asker.client.map(tracing::field::display),
            outcome = match outcome {
                Outcome::Ok => "ok",
                Outcome::Failed(error) => error.kind(),
                Outcome::Abandoned => "abandoned",
            },
            rows = rows.load(Ordering::Relaxed),
            seconds = elapsed.as_secs_f64(),
            sql,
            "query ended"
        );
        self.running.tell(Change::Ended { outcome, elapsed });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ended(Outcome::Abandoned);
    }
}
