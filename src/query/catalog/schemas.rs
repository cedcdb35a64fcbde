//! Schemas and tables by their names, listed in the order of the alphabet.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::Result;

#[derive(Debug, Default)]
pub struct Schemas(BTreeMap<String, Arc<dyn SchemaProvider>>);

impl Schemas {
    pub fn add(&mut self, name: &str, schema: Arc<dyn SchemaProvider>) {
        self.0.insert(name.to_owned(), schema);
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
