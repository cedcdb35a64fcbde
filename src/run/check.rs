//! `bellwether check`: everything that can be known to be wrong before the service runs.

use std::time::Duration;

use anyhow::{Context, Result};

use super::closed_loop::{self, ClosedLoop};
use super::service;
use super::settings::Settings;
use crate::config::Loaded;
use crate::kafka::admin;
use crate::store::Store;

const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks the configuration, plans every view and rule, and on request asks the brokers and opens the store.
pub async fn run(loaded: Loaded, reachable: bool) -> Result<()> {
    let settings = Settings::of(&loaded)?;
    let engine = service::engine(&settings).await?;
    let rules = service::rules(&settings, &engine).await?;
    let (views, rule_count) = (settings.views.len(), rules.all().count());
    ClosedLoop::new(closed_loop::Parts {
        interval: settings.evaluation_interval,
        insight: settings.insight.clone(),
        rules,
        targets: settings.targets.clone(),
        slides: settings.slides(),
    })?;
    println!(
        "configuration ok: {} inputs, {views} views, {rule_count} alert rules, {} scaling targets",
        settings.inputs.len(),
        settings.targets.len()
    );
    if reachable {
        reach(&settings, service::table_specs(&engine)).await?;
    }
    Ok(())
}

async fn reach(settings: &Settings, tables: Vec<crate::store::TableSpec>) -> Result<()> {
    let kafka = settings.kafka.clone();
    let reached = tokio::task::spawn_blocking(move || admin::reach(&kafka, REACH_TIMEOUT)).await??;
    println!("kafka ok: brokers {}", reached.brokers.join(", "));
    anyhow::ensure!(
        reached.missing.is_empty(),
        "input topics are missing: {} (hint: make them, or mend [[inputs]])",
        reached.missing.join(", ")
    );
    let store = Store::open(&settings.store, tables).await.context("the store cannot be opened")?;
    println!("store ok: {}", store.url());
    Ok(())
}
