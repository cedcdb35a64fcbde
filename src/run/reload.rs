//! Hot reload: reads the configuration again, checks all of it, and hands it to the core, which takes it up between two
//! batches. A configuration that is wrong anywhere changes nothing.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tokio::sync::{Mutex, oneshot, watch};
use tracing::{error, info, warn};

use super::core::Prepared;
use super::corrector::Current;
use super::settings::Settings;
use super::{clock, service};
use crate::config::Config;
use crate::insight::Insight;
use crate::kafka::admin;
use crate::store::Store;
use crate::stream::adopt::Adopted;
use crate::telemetry::Telemetry;

/// How long making new topics may take.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the settings again from where they came from.
pub type Reread = Arc<dyn Fn() -> Result<Settings> + Send + Sync>;

/// A reload on its way to the core, and where the core says what came of it.
pub struct Request {
    pub prepared: Prepared,
    pub done: oneshot::Sender<Adopted>,
}

/// What a reload did, by the names of views.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub unchanged: usize,
    pub changed: Vec<String>,
    pub new: Vec<String>,
    pub gone: Vec<String>,
}

pub struct Reloader {
    reread: Reread,
    /// What runs, for all to see.
    current: watch::Sender<Arc<Current>>,
    /// One reload at a time.
    turn: Mutex<()>,
    store: Arc<Store>,
    telemetry: Telemetry,
    requests: Sender<Request>,
}

impl Reloader {
    pub fn new(
        reread: Reread,
        current: watch::Sender<Arc<Current>>,
        store: Arc<Store>,
        telemetry: Telemetry,
        requests: Sender<Request>,
    ) -> Reloader {
        Reloader { reread, current, turn: Mutex::default(), store, telemetry, requests }
    }

    /// Reloads, and returns once the core goes on with what was read.
    ///
    /// # Errors
    /// The first thing that is wrong; everything goes on as it was.
    pub async fn reload(&self) -> Result<Report> {
        let done = self.try_reload().await;
        match &done {
            Ok(report) => info!(
                changed = report.changed.join(", "),
                new = report.new.join(", "),
                gone = report.gone.join(", "),
                unchanged = report.unchanged,
                "configuration reloaded"
            ),
            Err(why) => error!(error = format!("{why:#}"), "reload refused; nothing was changed"),
        }
        match done.is_ok() {
            true => self.telemetry.reloads.taken_up(clock::now_secs()),
            false => self.telemetry.reloads.refused(),
        }
        done
    }

    async fn try_reload(&self) -> Result<Report> {
        let _turn = self.turn.lock().await;
        let reread = Arc::clone(&self.reread);
        let settings = Arc::new(tokio::task::spawn_blocking(move || reread()).await??);
        refuse_fixed(&self.current.borrow().settings.config, &settings.config)?;
        let engine = service::engine(&settings).await?;
        let rules = service::rules(&settings, &engine).await?;
        Insight::new(&settings.insight)?;
        self.make_topics(&settings).await?;
        self.store.extend(service::table_specs(&engine)).await?;
        // A view that was gone and comes back goes on where its table stands: its last rows must be in it.
        self.store.commit().await.context("the store takes no commit now")?;
        for view in &settings.views {
            self.telemetry.views.declare(&view.name);
        }
        let tables = engine.dimensions().to_vec();
        let (done, answer) = oneshot::channel();
        let prepared = Prepared { settings: settings.clone(), engine, rules };
        if self.requests.send(Request { prepared, done }).is_err() {
            bail!("the service is shutting down");
        }
        let adopted = answer.await.context("the service stopped before it had reloaded")?;
        // Where changed views begin is stored before anything is corrected by them.
        if let Err(error) = self.store.commit().await {
            warn!(error = service::chain(&error), "where changed views begin is stored later");
        }
        self.current.send_replace(Arc::new(Current { settings, tables }));
        let names = |of: std::collections::BTreeSet<Arc<str>>| of.iter().map(|name| name.to_string()).collect();
        Ok(Report {
            unchanged: adopted.kept.len() + adopted.rebuilt.len(),
            changed: names(adopted.changed),
            new: names(adopted.new),
            gone: names(adopted.gone),
        })
    }

    async fn make_topics(&self, settings: &Settings) -> Result<()> {
        let (kafka, topics) = (settings.kafka.clone(), settings.topics_wanted.clone());
        if topics.is_empty() {
            return Ok(());
        }
        let made = tokio::task::spawn_blocking(move || admin::ensure_topics(&kafka, &topics, TOPICS_TIMEOUT));
        made.await?.context("failed to make the topics that the configuration names")?;
        Ok(())
    }
}

/// Reloads at every SIGHUP. What came of it stands in the log.
pub async fn on_hangup(reloader: Arc<Reloader>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        let _ = reloader.reload().await;
    }
}

/// Refuses what only a start can change. All of it is named, so that one look is enough.
fn refuse_fixed(old: &Config, new: &Config) -> Result<()> {
    ensure!(
        old.kafka.partials_topic.is_none(),
        "instances that share their work take up changes at a start alone (hint: stop all of them, then start them with \
         the new configuration)"
    );
    let same = [
        ("service", old.service == new.service),
        ("kafka", old.kafka == new.kafka),
        ("inputs", old.inputs == new.inputs),
        ("store", old.store == new.store),
        ("serve", old.serve == new.serve),
        ("query", old.query == new.query),
        ("log", old.log == new.log),
    ];
    let changed: Vec<&str> = same.iter().filter(|(_, same)| !same).map(|(section, _)| *section).collect();
    ensure!(
        changed.is_empty(),
        "what changed in {} takes effect at a start alone (hint: restart the service, or take these changes back and \
         reload the others)",
        changed.join(", ")
    );
    Ok(())
}
