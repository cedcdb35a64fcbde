//! The schema `metric`: one table for each metric, with a column for each of its labels. Made when a query names it; holds
//! no rows of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{JoinType, Result};
use datafusion::datasource::{TableType, ViewTable, provider_as_source};
use datafusion::functions::core::expr_fn::get_field;
use datafusion::logical_expr::{LogicalPlanBuilder, col, lit};

use super::series::Known;
use crate::model::series::index::NAME;

/// Columns that every metric has; a label of such a name is found under [`PREFIX`] and its name.
const COLUMNS: [&str; 3] = ["ts", "value", "series_id"];
const PREFIX: &str = "label_";

/// The tables that a metric is made of, as of one moment.
#[derive(Clone, Debug)]
pub struct MetricSchema {
    pub samples: Arc<dyn TableProvider>,
    pub series: Arc<dyn TableProvider>,
    pub labels: Known,
}

impl MetricSchema {
    /// Returns the names of the labels that series of a metric have; none where there is no such metric.
    fn labels_of(&self, metric: &str) -> Option<Vec<String>> {
        let index = self.labels.read();
        let alike = index.alike(self.labels.seen(index.values(NAME)?.get(metric)));
        let names: BTreeSet<&str> = alike.iter().flat_map(|one| one.label_names.iter().copied()).collect();
        (!alike.is_empty()).then(|| names.into_iter().map(str::to_owned).collect())
    }

    fn view(&self, metric: &str, labels: &[String]) -> Result<ViewTable> {
        let is_metric = col("name").eq(lit(metric));
        let series =
            LogicalPlanBuilder::scan("r", provider_as_source(self.series.clone()), None)?.filter(is_metric)?.build()?;
        let columns =
            labels.iter().map(|label| get_field(col("r.labels"), label.as_str()).alias(column_name(label, labels)));
        let plan = LogicalPlanBuilder::scan("s", provider_as_source(self.samples.clone()), None)?
            .join(series, JoinType::Inner, (vec!["s.series_id"], vec!["r.series_id"]), None)?
            .project([col("s.ts"), col("s.value")].into_iter().chain(columns).chain([col("s.series_id")]))?
            .build()?;
        Ok(ViewTable::new(plan, None))
    }
}

#[async_trait]
impl SchemaProvider for MetricSchema {
    fn table_names(&self) -> Vec<String> {
        let index = self.labels.read();
        let names = index.values(NAME).into_iter().flat_map(|names| names.iter());
        let is_seen = |rows: &[u32]| rows.first().is_some_and(|&row| (row as usize) < self.labels.len());
        names.filter(|(_, rows)| is_seen(rows)).map(|(name, _)| name.to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(labels) = self.labels_of(name) else { return Ok(None) };
        Ok(Some(Arc::new(self.view(name, &labels)?)))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.labels_of(name).is_some()
    }
}

/// Returns the name of the column of a label: its own, unless every metric has a column of that name.
fn column_name(label: &str, labels: &[String]) -> String {
    let mut name = label.to_owned();
    let is_taken = |name: &String| COLUMNS.contains(&name.as_str()) || name != label && labels.contains(name);
    while is_taken(&name) {
        name.insert_str(0, PREFIX);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_columns_have_one_name() {
        let labels = ["ts", "label_ts", "host"].map(str::to_owned);
        assert_eq!(labels.each_ref().map(|label| column_name(label, &labels)), ["label_label_ts", "label_ts", "host"]);
    }
}
