//! Who asks, what they may read, and what all their queries together may take.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::execution::memory_pool::{
    GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use tokio::sync::Semaphore;

use super::catalog::PUBLIC;
use super::engine::Settings;
use super::error::QueryError;
use super::postgres::Relations;

/// What somebody is granted; where nothing is said, what all may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    pub name: String,
    /// Tables as `schema.table`, `*` standing for any letters; a name without a schema is one of `public`. None for all.
    pub tables: Option<Vec<String>>,
    pub memory_bytes_max: Option<usize>,
    pub rows_max: Option<usize>,
    pub timeout: Option<Duration>,
    /// Queries of theirs that run at once; others wait for their turn.
    pub concurrency_max: Option<usize>,
    /// Whether they may end the queries of others and read the settings anew.
    pub is_admin: bool,
}

/// Somebody who asks.
#[derive(Debug)]
pub struct User {
    pub name: String,
    pub is_admin: bool,
    /// Schema and table; none for all.
    tables: Option<Vec<(String, String)>>,
    pub(super) limits: Limits,
    pub(super) permits: Arc<Semaphore>,
    pub(super) environment: Arc<RuntimeEnv>,
    /// The numbers that Postgres' clients know the tables by.
    pub(super) relations: Relations,
}

/// What one query may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes_max: usize,
    pub rows_max: usize,
    pub timeout: Duration,
    pub concurrency_max: usize,
}

impl User {
    /// Admits somebody to an engine with these settings and this environment.
    pub(super) fn new(grant: Grant, settings: &Settings, shared: &Arc<RuntimeEnv>) -> Result<User, QueryError> {
        let limits = Limits {
            memory_bytes_max: grant.memory_bytes_max.unwrap_or(usize::MAX).min(settings.memory_bytes_max),
            rows_max: grant.rows_max.unwrap_or(usize::MAX).min(settings.rows_max),
            timeout: grant.timeout.unwrap_or(Duration::MAX).min(settings.timeout),
            concurrency_max: grant.concurrency_max.unwrap_or(usize::MAX).clamp(1, settings.concurrency_max.max(1)),
        };
        let environment = match grant.memory_bytes_max {
            None => Ok(shared.clone()),
            Some(_) => {
                let own = GreedyMemoryPool::new(limits.memory_bytes_max);
                let pool = SharePool { own, shared: shared.memory_pool.clone() };
                RuntimeEnvBuilder::from_runtime_env(shared).with_memory_pool(Arc::new(pool)).build_arc()
            }
        };
        Ok(User {
            tables: grant.tables.map(|tables| tables.iter().map(|table| qualified(table)).collect()),
            permits: Arc::new(Semaphore::new(limits.concurrency_max.min(Semaphore::MAX_PERMITS))),
            environment: environment.map_err(|source| QueryError::SetUp { source })?,
            relations: Relations::default(),
            name: grant.name,
            is_admin: grant.is_admin,
            limits,
        })
    }

    /// Returns what one answer of theirs may take.
    pub fn memory_bytes_max(&self) -> usize {
        self.limits.memory_bytes_max
    }

    /// Returns whether they may read a table.
    pub fn may_read(&self, schema: &str, table: &str) -> bool {
        let Some(tables) = &self.tables else { return true };
        tables.iter().any(|(of, name)| is_like(of, schema) && is_like(name, table))
    }

    /// Returns whether there is a table that they may not read.
    pub(super) fn is_restricted(&self) -> bool {
        self.tables.is_some()
    }
}

fn qualified(table: &str) -> (String, String) {
    let (schema, name) = table.split_once('.').unwrap_or((if table == "*" { "*" } else { PUBLIC }, table));
    (schema.to_owned(), name.to_owned())
}

/// Returns whether a pattern, in which `*` stands for any letters, covers the whole of a text.
pub fn is_like(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The first place where a part stands is as good as any: what follows it is longest.
    for part in middle.split('*') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(end)
}

/// What one user may take of the memory that all share.
#[derive(Debug)]
struct SharePool {
    own: GreedyMemoryPool,
    shared: Arc<dyn MemoryPool>,
}

impl fmt::Display for SharePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.own, self.shared)
    }
}

impl MemoryPool for SharePool {
    fn name(&self) -> &str {
        "share"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.shared.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.shared.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.own.grow(reservation, additional);
        self.shared.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.shared.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.own.try_grow(reservation, additional)?;
        let shared = self.shared.try_grow(reservation, additional);
        if shared.is_err() {
            self.own.shrink(reservation, additional);
        }
        shared
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.own.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_letters() {
        let cases = [
            ("metrics", "metrics", true),
            ("metrics", "metric", false),
            ("*", "", true),
            ("http_*", "http_requests", true),
            ("http_*", "http_", true),
            ("http_*", "https", false),
            ("*_total", "http_requests_total", true),
            ("*_total", "total", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("a*a", "a", false),
            ("*a*b*", "xbxaxbx", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(is_like(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_name_without_a_schema_is_one_of_public() {
        let own = |schema: &str, name: &str| (schema.to_owned(), name.to_owned());
        assert_eq!(qualified("metrics"), own("public", "metrics"));
        assert_eq!(qualified("metric.http_*"), own("metric", "http_*"));
        assert_eq!(qualified("*"), own("*", "*"));
        assert_eq!(qualified("*.*"), own("*", "*"));
    }
}
