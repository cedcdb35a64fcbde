//! What a query finds under which name: the tables as of one moment, the views over them, a table for each metric, and what
//! there is to know about the system. Made anew for every query; holds no rows of its own.

mod metric;
mod schemas;
mod series;
mod system;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock, Weak};

use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProviderList, SchemaProvider, TableProvider,
};
use datafusion::common::DataFusionError;
use datafusion::datasource::ViewTable;
use datafusion::execution::{SessionState, SessionStateBuilder};
use futures::future::BoxFuture;

use super::access::User;
use super::corrected::{self, EMITTED};
use super::error::QueryError;
use super::planner::{Reads, View};
use super::postgres::{PG_CATALOG, Postgres};
use crate::model::series::index::Index;
use metric::MetricSchema;
use schemas::{Schemas, Tables};
use series::{Known, SeriesTable};
pub use system::SystemTable;

pub const NAME: &str = "bellwether";
/// The schema of the tables and views.
pub const PUBLIC: &str = "public";
/// The schema with a table for each metric.
pub const METRIC: &str = "metric";
/// The schema of what there is to know about the system.
pub const SYSTEM: &str = "system";
pub const INFORMATION_SCHEMA: &str = "information_schema";

/// The tables of samples and of what they are samples of.
const SAMPLES: &str = "samples";
const SERIES: &str = "series";

/// The tables as of one moment.
pub struct Pinned {
    pub tables: Vec<(String, Arc<dyn TableProvider>)>,
    /// Waits for the index of all series to know those of this moment; waited for where a statement needs it. Where there
    /// is none, `series` is a table as any other, and there are no tables of metrics.
    pub series: Option<BoxFuture<'static, Result<Arc<RwLock<Index>>, DataFusionError>>>,
    pub system: Vec<SystemTable>,
}

impl From<Vec<(String, Arc<dyn TableProvider>)>> for Pinned {
    fn from(tables: Vec<(String, Arc<dyn TableProvider>)>) -> Pinned {
        Pinned { tables, series: None, system: Vec::new() }
    }
}

/// Gives the tables as of now, one consistent set; called once for every query.
pub type Pin = Arc<dyn Fn() -> Pinned + Send + Sync>;

/// The catalog of one query, with the state of its session.
pub(super) struct Catalog {
    state: SessionState,
    schemas: Arc<Schemas>,
    /// Of the tables and views, those too that cannot be read now.
    names: Vec<String>,
}

impl Catalog {
    /// Makes the catalog for a query that reads no more than this.
    pub async fn new(
        base: &SessionState,
        pinned: Pinned,
        views: &[View],
        reads: &Reads,
    ) -> Result<Catalog, QueryError> {
        let Pinned { mut tables, series, system } = pinned;
        let (public, of_system) = (Arc::new(Tables::default()), Arc::new(Tables::default()));
        system.into_iter().for_each(|table| of_system.add(table.name, Arc::new(table)));
        let mut schemas = Schemas::default();
        schemas.add(PUBLIC, public.clone());
        schemas.add(SYSTEM, of_system.clone());
        if let Some(series) = series
            && reads.need_series()
        {
            let known = Known::new(series.await.map_err(|source| QueryError::Read { source })?);
            add_series(&mut schemas, &of_system, &mut tables, known);
        }
        let schemas = Arc::new(schemas);
        let newest = corrected::newest(&tables);
        for (name, table) in tables {
            let is_corrected = newest.iter().any(|(corrected, _)| *corrected == name);
            let name = if is_corrected { format!("{name}{EMITTED}") } else { name };
            public.add(&name, table);
        }
        let state = with_catalog(base, schemas.clone());
        let is_listing = reads.are_of_listings();
        for (name, sql) in newest.iter().filter(|(name, _)| is_listing || reads.tables.contains(name)) {
            let plan = state.create_logical_plan(sql).await.map_err(|source| QueryError::SetUp { source })?;
            public.add(name, Arc::new(ViewTable::new(plan, Some(sql.clone()))));
        }
        for View { name, sql, .. } in views {
            let is_wanted = reads.tables.contains(name);
            if (is_wanted || is_listing) && !public.table_exist(name) {
                match state.create_logical_plan(sql).await {
                    Ok(plan) => public.add(name, Arc::new(ViewTable::new(plan, Some(sql.clone())))),
                    Err(source) if is_wanted => return Err(QueryError::View { name: name.clone(), source }),
                    // A listing shows what can be read now.
                    Err(_) => {}
                }
            }
        }
        let mut names = public.table_names();
        names.extend(views.iter().map(|view| view.name.clone()));
        names.extend(newest.into_iter().map(|(name, _)| name));
        Ok(Catalog { state, schemas, names })
    }

    /// Returns the state in which a user's statement is planned: it knows what they may read, and no more. What views read
    /// they need not be allowed to read.
    pub fn seen_by(&self, user: &Arc<User>, postgres: &Postgres, reads: &Reads) -> Result<SessionState, QueryError> {
        if !user.is_restricted() && !reads.any_of(PG_CATALOG) {
            return Ok(self.state.clone());
        }
        let mut seen = self.schemas.seen_by(user);
        if !reads.any_of(PG_CATALOG) {
            return Ok(with_catalog(&self.state, Arc::new(seen)));
        }
        let relations = user.relations.schema(postgres);
        seen.add(PG_CATALOG, relations.map_err(|source| QueryError::SetUp { source })?);
        let seen = Arc::new(seen);
        let now: Weak<dyn CatalogProvider> = Arc::<Schemas>::downgrade(&seen);
        user.relations.show(now);
        Ok(with_catalog(&self.state, seen))
    }

    /// Returns the names of the tables of a schema, those too that cannot be read now.
    pub fn tables_of(&self, schema: &str) -> BTreeSet<String> {
        if schema == PUBLIC {
            return self.names.iter().cloned().collect();
        }
        let catalog = self.state.catalog_list().catalog(NAME);
        let schema = catalog.and_then(|catalog| catalog.schema(schema));
        schema.map(|schema| schema.table_names()).unwrap_or_default().into_iter().collect()
    }
}

fn with_catalog(base: &SessionState, schemas: Arc<Schemas>) -> SessionState {
    let catalogs = Arc::new(MemoryCatalogProviderList::new());
    catalogs.register_catalog(NAME.to_owned(), schemas);
    SessionStateBuilder::new_from_existing(base.clone()).with_catalog_list(catalogs).build()
}

/// Puts the index in the place of the table of series, and adds what else it can answer.
fn add_series(schemas: &mut Schemas, system: &Tables, tables: &mut [(String, Arc<dyn TableProvider>)], known: Known) {
    for table in [system::metrics(known.clone()), system::labels(known.clone())] {
        system.add(table.name, Arc::new(table));
    }
    let place = |name: &str| tables.iter().position(|(table, _)| table == name);
    let (Some(samples), Some(series)) = (place(SAMPLES), place(SERIES)) else { return };
    let indexed: Arc<dyn TableProvider> = Arc::new(SeriesTable::new(known.clone(), tables[series].1.schema()));
    tables[series].1 = indexed.clone();
    schemas.add(METRIC, Arc::new(MetricSchema { samples: tables[samples].1.clone(), series: indexed, labels: known }));
}

impl Reads {
    /// Returns whether it takes the index of series to answer.
    fn need_series(&self) -> bool {
        self.tables.contains(SERIES)
            || self.are_of_listings()
            || [METRIC, SYSTEM].iter().any(|schema| self.any_of(schema))
    }

    /// Returns whether what tables there are is asked.
    fn are_of_listings(&self) -> bool {
        [INFORMATION_SCHEMA, PG_CATALOG].iter().any(|schema| self.any_of(schema))
    }
}
