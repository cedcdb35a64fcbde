//! From a statement to a plan that runs: which tables it reads, what they are at this moment, and what it may not do.
//!
//! What the limits do not cover: an expression may allocate outside DataFusion's memory pool. The functions that turn a
//! few bytes of SQL into any number of bytes are therefore not offered (see `EXPANDING_FUNCTIONS`).

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::dataframe::DataFrame;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use futures::StreamExt as _;

use super::access::User;
use super::catalog::{self, Catalog, Pin};
use super::engine::{Described, Question, Settings};
use super::error::QueryError;
use super::parameters::Types;
use super::postgres::{PG_CATALOG, Postgres};
use super::running::{Asker, Running, Surface};
use super::{parameters, register_functions, statement};

/// Names of the greatest consumers of memory in an out-of-memory message.
const CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// Functions whose result can be of any size whatever the size of their arguments.
const EXPANDING_FUNCTIONS: [&str; 7] =
    ["repeat", "lpad", "rpad", "range", "generate_series", "array_repeat", "array_resize"];

/// How near a name must be to be offered in place of an unknown one, as Jaro-Winkler similarity.
const SIMILARITY_MIN: f64 = 0.8;

/// Turns statements into running plans.
pub(super) struct Planner {
    base: SessionState,
    postgres: Postgres,
    pub running: Arc<Running>,
    pin: Pin,
    views: Vec<View>,
    settings: Settings,
}

/// A plain view, parsed once.
pub(super) struct View {
    pub name: String,
    pub sql: String,
    /// The names it reads.
    reads: BTreeSet<String>,
}

/// What a statement reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    /// The names of tables and views.
    pub tables: BTreeSet<String>,
    /// Schemas other than that of the tables, with the names read of them.
    pub others: BTreeSet<(String, String)>,
}

impl Planner {
    pub fn new(settings: Settings, threads: usize, pin: Pin, views: Vec<(String, String)>) -> Result<Self, QueryError> {
        let base = base_state(&settings, threads)?;
        let views = views
            .into_iter()
            .map(|(name, sql)| View::read(&base, name, sql, settings.statement_bytes_max))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Planner { postgres: Postgres::new(&base)?, base, running: Arc::default(), pin, views, settings })
    }

    pub fn environment(&self) -> &Arc<RuntimeEnv> {
        self.base.runtime_env()
    }

    /// Plans a statement and begins with its answer.
    pub async fn begin(&self, asker: &Asker, question: Question) -> Result<SendableRecordBatchStream, QueryError> {
        let Question { sql, types, parameters, .. } = question;
        let (state, mut plan) = self.plan(asker, &sql, &types).await?;
        if let Some(parameters) = parameters {
            plan = plan.replace_params_with_values(&parameters).map_err(|source| QueryError::Plan { source })?;
        }
        let described = plan.schema().inner().clone();
        let stream =
            DataFrame::new(state.clone(), plan).execute_stream().await.map_err(|source| match source.find_root() {
                DataFusionError::Plan(_) | DataFusionError::SchemaError(..) => QueryError::Plan { source },
                _ => QueryError::of_execution(source, asker.user.limits.memory_bytes_max),
            })?;
        Ok(as_described(stream, described, state))
    }

    /// Plans a statement, and says what it takes and what it answers with.
    pub async fn describe(&self, asker: &Asker, question: &Question) -> Result<Described, QueryError> {
        let (_, plan) = self.plan(asker, &question.sql, &question.types).await?;
        let parameters = parameters::of_plan(&plan).map_err(|source| QueryError::Plan { source })?;
        Ok(Described { schema: plan.schema().inner().clone(), parameters })
    }

    async fn plan(&self, asker: &Asker, sql: &str, types: &Types) -> Result<(SessionState, LogicalPlan), QueryError> {
        let bytes_max = self.settings.statement_bytes_max;
        let of_server = match asker.surface {
            Surface::Postgres => self.postgres.parse(sql, bytes_max)?,
            _ => None,
        };
        let (base, mut statement) = match of_server {
            Some(statement) => (self.postgres.state(&asker.user.name), statement),
            None => (self.base.clone(), statement::parse(sql, bytes_max)?),
        };
        parameters::cast(&mut statement, types)?;
        let base =
            SessionStateBuilder::new_from_existing(base).with_runtime_env(asker.user.environment.clone()).build();
        let mut reads = Reads::of(&self.base, &statement).map_err(|source| QueryError::Plan { source })?;
        let named = reads.clone();
        // A view reads only views before it.
        for view in self.views.iter().rev() {
            if reads.tables.contains(&view.name) {
                reads.tables.extend(view.reads.iter().cloned());
            }
        }
        let mut pinned = (self.pin)();
        pinned.system.push(self.running.table(&asker.user));
        let catalog = Catalog::new(&base, pinned, &self.views, &reads).await?;
        let state = catalog.seen_by(&asker.user, &self.postgres, &reads)?;
        let plan = match state.statement_to_plan(statement).await {
            Ok(plan) => plan,
            Err(source) => {
                let unknown = forbidden_table(&named, &catalog, &asker.user)
                    .or_else(|| unknown_table(&named, &catalog, &asker.user))
                    .or_else(|| unknown_function(&source, &self.base));
                return Err(unknown.unwrap_or(QueryError::Plan { source }));
            }
        };
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|_| QueryError::Refused { kind: statement::WRITES_INSIDE.to_owned() })?;
        Ok((state, plan))
    }
}

/// Gives an answer the schema that it was described with: what runs may know more, such as that there is no NULL, and clients
/// that were told otherwise refuse it. The state lasts as long as the answer: the system catalog looks into it on the way.
fn as_described(
    stream: SendableRecordBatchStream,
    described: SchemaRef,
    state: SessionState,
) -> SendableRecordBatchStream {
    let is_other = stream.schema() != described && described.contains(&stream.schema());
    let schema = if is_other { described } else { stream.schema() };
    let told = schema.clone();
    let rows = stream.map(move |batch| {
        let _lasting = &state;
        if is_other { Ok(batch?.with_schema(told.clone())?) } else { batch }
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

impl View {
    fn read(base: &SessionState, name: String, sql: String, bytes_max: usize) -> Result<Self, QueryError> {
        let parsed = statement::parse(&sql, bytes_max)?;
        match Reads::of(base, &parsed) {
            Ok(reads) => Ok(View { name, sql, reads: reads.tables }),
            Err(source) => Err(QueryError::View { name, source }),
        }
    }
}

impl Reads {
    fn of(state: &SessionState, statement: &Statement) -> Result<Reads, DataFusionError> {
        let mut reads = Reads::default();
        for name in state.resolve_table_references(statement)? {
            match name.schema() {
                None | Some(catalog::PUBLIC) => reads.tables.insert(name.table().to_owned()),
                Some(schema) => reads.others.insert((schema.to_owned(), name.table().to_owned())),
            };
        }
        Ok(reads)
    }

    /// Returns schema and name of all that is read.
    fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        let tables = self.tables.iter().map(|table| (catalog::PUBLIC, table.as_str()));
        tables.chain(self.others.iter().map(|(schema, table)| (schema.as_str(), table.as_str())))
    }

    /// Returns whether any of a schema is read.
    pub fn any_of(&self, schema: &str) -> bool {
        self.others.iter().any(|(read, _)| read == schema)
    }
}

fn base_state(settings: &Settings, threads: usize) -> Result<SessionState, QueryError> {
    let set_up = |source| QueryError::SetUp { source };
    let config = SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(catalog::NAME, catalog::PUBLIC)
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

/// Tells which table of a statement that did not plan is there, and not for this user to read.
fn forbidden_table(reads: &Reads, catalog: &Catalog, user: &User) -> Option<QueryError> {
    let mut named = reads.named().filter(|(schema, _)| ![catalog::INFORMATION_SCHEMA, PG_CATALOG].contains(schema));
    let is_theirs_not = |(schema, name): &(&str, &str)| !user.may_read(schema, name);
    let (schema, name) = named.find(|one| is_theirs_not(one) && catalog.tables_of(one.0).contains(one.1))?;
    Some(QueryError::Forbidden { user: user.name.clone(), name: qualified(schema, name) })
}

/// Tells which table of a statement that did not plan is unknown, with the nearest that is known.
fn unknown_table(reads: &Reads, catalog: &Catalog, user: &User) -> Option<QueryError> {
    let mut unknown = reads.named().filter(|(schema, _)| ![catalog::INFORMATION_SCHEMA, PG_CATALOG].contains(schema));
    let (schema, name, known) = unknown.find_map(|(schema, name)| {
        let mut known = catalog.tables_of(schema);
        known.retain(|known| user.may_read(schema, known));
        (!known.contains(name)).then_some((schema, name, known))
    })?;
    let qualified = |name: &str| qualified(schema, name);
    let hint = match nearest(name, known.iter().map(String::as_str)) {
        Some(known) => format!("did you mean {:?}", qualified(known)),
        None => "SHOW TABLES lists them".to_owned(),
    };
    Some(QueryError::UnknownTable { name: qualified(name), hint })
}

/// Returns a table's name as it is written in a statement.
fn qualified(schema: &str, name: &str) -> String {
    if schema == catalog::PUBLIC { name.to_owned() } else { format!("{schema}.{name}") }
}

/// Tells which function of a statement that did not plan is unknown, and what there is instead.
fn unknown_function(error: &DataFusionError, base: &SessionState) -> Option<QueryError> {
    let DataFusionError::Plan(message) = error.find_root() else { return None };
    let (name, _) = message.strip_prefix("Invalid function '")?.split_once('\'')?;
    let window = || base.window_functions().keys().filter(|known| !base.aggregate_functions().contains_key(*known));
    let hint = if EXPANDING_FUNCTIONS.contains(&name) {
        "its result can be of any size, which is not offered here".to_owned()
    } else if window().any(|known| known == name) {
        format!("it works over windows: {name}(…) OVER (ORDER BY …)")
    } else {
        let known = base.scalar_functions().keys().chain(base.aggregate_functions().keys()).chain(window());
        match nearest(name, known.map(String::as_str)) {
            Some(known) => format!("did you mean {known:?}"),
            None => "information_schema.routines lists them".to_owned(),
        }
    };
    Some(QueryError::UnknownFunction { name: name.to_owned(), hint })
}

/// Returns the known name that is nearest to one that is not, where one is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let near = near.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN);
    // Of two that are as near the first of the alphabet, whatever the order they come in.
    near.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1))).map(|(_, known)| known)
}
