//! Schemas and tables by their names, listed in the order of the alphabet.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;

use crate::query::access::User;

#[derive(Clone, Debug, Default)]
pub struct Schemas(BTreeMap<String, Arc<dyn SchemaProvider>>);

impl Schemas {
    pub fn add(&mut self, name: &str, schema: Arc<dyn SchemaProvider>) {
        self.0.insert(name.to_owned(), schema);
    }

    /// Returns the schemas with no more in them than a user may read.
    pub fn seen_by(&self, user: &Arc<User>) -> Schemas {
        if !user.is_restricted() {
            return self.clone();
        }
        let seen = |name: &String, all: &Arc<dyn SchemaProvider>| -> Arc<dyn SchemaProvider> {
            Arc::new(Seen { name: name.clone(), all: all.clone(), user: user.clone() })
        };
        Schemas(self.0.iter().map(|(name, all)| (name.clone(), seen(name, all))).collect())
    }
}

/// A schema with no more in it than a user may read.
#[derive(Debug)]
struct Seen {
    name: String,
    all: Arc<dyn SchemaProvider>,
    user: Arc<User>,
}

#[async_trait]
impl SchemaProvider for Seen {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.all.table_names();
        names.retain(|table| self.user.may_read(&self.name, table));
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if self.user.may_read(&self.name, name) { self.all.table(name).await } else { Ok(None) }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        if self.user.may_read(&self.name, name) { self.all.table_type(name).await } else { Ok(None) }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.user.may_read(&self.name, name) && self.all.table_exist(name)
    }
}

impl CatalogProvider for Schemas {
    fn schema_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.0.get(name).cloned()
    }
}

/// The tables of one schema; more may come while views over them are planned.
#[derive(Debug, Default)]
pub struct Tables(RwLock<BTreeMap<String, Arc<dyn TableProvider>>>);

impl Tables {
    pub fn add(&self, name: &str, table: Arc<dyn TableProvider>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), table);
    }

    fn get(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.get(name))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}
