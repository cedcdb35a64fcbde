//! `bellwether serve`: answers questions about a store that others write, and reads no Kafka: for readers who are to disturb
//! nobody, and for folders whose service is gone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::oneshot;
use tracing::warn;

use super::admission::{Admission, warn_of_openness};
use super::{settings, tables};
use crate::config::Config;
use crate::serve::{Api, Bound, Readiness};
use crate::store::Store;
use crate::telemetry::Telemetry;

/// Serves until a signal says to stop.
pub async fn run(config: &Config) -> Result<()> {
    let serve = settings::serve(config);
    let users = config.serve.users.as_ref().map(Into::into);
    warn_of_openness(&serve, config.serve.users.as_ref().map(std::path::Path::new));
    let bound = Bound::bind(&serve).await?;
    let store = Arc::new(Store::inspect(&settings::store(config, None)).await?);
    for damage in store.damaged() {
        warn!(table = damage.table, what = damage.what, "a table is left out that cannot be read");
    }
    let query = Arc::new(tables::engine(settings::query(config), store.clone(), Vec::new())?);
    let admission = Admission::new(query.clone(), users)?;
    let api = Api {
        query,
        accounts: admission.accounts.clone(),
        telemetry: Telemetry::default(),
        ready: Arc::new(|| Readiness { ready: true, reasons: Vec::new() }),
        views: Arc::new(|| serde_json::json!([])),
        reload: None,
    };
    let keeping_up = [admission.keep_up(bound.tls().cloned()), follow(store, config.store.commit_interval.get())];
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(bound.serve(api, async {
        let _ = stopped.await;
    }));
    super::interrupted().await;
    let _ = stop.send(());
    let served = serving.await?;
    keeping_up.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(served?)
}

/// Shows what others store, soon after they do.
fn follow(store: Arc<Store>, every: Duration) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            if let Err(error) = store.refresh().await {
                warn!(error = super::service::chain(&error), "what others stored is shown later");
            }
        }
    })
}
