//! A folder of records and views, put through the core into a store, record by record.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bellwether::config;
use bellwether::ingest::Bounds;
use bellwether::model::time::EventTime;
use bellwether::run::core::Core;
use bellwether::run::corrector::{Corrector, Current};
use bellwether::run::incoming::Incoming;
use bellwether::run::partition::{DoneBefore, StoredAs};
use bellwether::run::service;
use bellwether::run::settings::Settings;
use bellwether::store::Store;
use bellwether::stream::Source;
use bellwether::stream::definition::{Definition, Definitions};
use bellwether::telemetry::Telemetry;

use crate::views;

const BOUNDS: Bounds = Bounds { oldest: EventTime::MIN, newest: EventTime::MAX };
const INPUTS: [(&str, Source); 2] = [("metrics", Source::Metrics), ("events", Source::Events)];
/// Later than any row, and a lateness within which none is late.
const END: &str = "2100-01-01T00:00:00Z";
pub const FOREVER: Duration = Duration::from_secs(20 * 365 * 86_400);

pub fn definitions(folder: &Path) -> Result<Definitions, String> {
    Definitions::read(&views::sql_files(folder), views::DEFAULTS).map_err(|error| error.to_string())
}

pub struct Fed {
    pub settings: Arc<Settings>,
    pub store: Arc<Store>,
    core: Core,
    current: Arc<Current>,
    inputs: Vec<Input>,
    _home: tempfile::TempDir,
}

/// The lines of one topic, some of which are fed.
struct Input {
    topic: Arc<str>,
    source: Source,
    text: String,
    fed: usize,
}

impl Fed {
    /// Opens a store for the records of a folder, and feeds none.
    pub async fn none_of(folder: &Path, definitions: Definitions) -> Result<Fed, String> {
        let home = tempfile::tempdir().unwrap();
        let settings = Arc::new(settings(home.path(), definitions));
        let engine = service::engine(&settings).await.map_err(said)?;
        let current = Arc::new(Current { settings: settings.clone(), tables: engine.dimensions().to_vec() });
        let store = Store::open(&settings.store, service::table_specs(&engine)).await.map_err(|e| e.to_string())?;
        let store = Arc::new(store);
        let mut core = service::build_core(&settings, engine, &store, &Telemetry::default()).await.map_err(said)?;
        let mut inputs = Vec::new();
        for (name, source) in INPUTS {
            let Ok(text) = fs::read_to_string(folder.join(format!("{name}.ndjson"))) else { continue };
            let named = StoredAs { app: format!("cluster/{name}/0"), topic_id: name.to_owned() };
            core.assign((name.into(), 0), named, 0, DoneBefore::default()).map_err(said)?;
            inputs.push(Input { topic: name.into(), source, text, fed: 0 });
        }
        Ok(Fed { settings, store, core, current, inputs, _home: home })
    }

    /// Feeds records until this share of each topic is fed, one topic after the other.
    pub async fn feed(&mut self, share: f64) -> anyhow::Result<()> {
        for Input { topic, text, fed, .. } in &mut self.inputs {
            let until = (text.lines().count() as f64 * share).round() as usize;
            for (offset, value) in text.lines().enumerate().take(until).skip(*fed) {
                let line = Line { topic: topic.clone(), offset: offset as i64, value };
                self.core.ingest(std::iter::once(line), BOUNDS)?;
                close(&mut self.core).await?;
            }
            *fed = until;
        }
        Ok(())
    }

    /// Closes the windows that are open.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        let end = EventTime::parse_rfc3339(END).unwrap();
        for input in &self.inputs {
            self.core.engine.clock(input.source).observe(&(input.topic.clone(), 0), end);
        }
        close(&mut self.core).await
    }

    pub fn corrector(&self) -> Corrector {
        Corrector::new(self.store.clone(), self.core.held.clone(), self.current.clone(), Telemetry::default())
    }

    pub fn corrected(&self) -> impl Iterator<Item = &Definition> {
        self.settings.views.iter().filter(|view| view.correct_every.is_some())
    }
}

pub fn said(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn settings(home: &Path, definitions: Definitions) -> Settings {
    let inputs = r#"[{topic = "metrics", format = "json_metrics"}, {topic = "events", format = "json_events"}]"#;
    let set = |name: &str, value: &str| (format!("BELLWETHER_{name}"), value.to_owned());
    let typed = [set("INPUTS", inputs), set("STORE__URL", &home.join("data").display().to_string())];
    let mut settings = Settings::of(&config::load(None, typed.into_iter()).unwrap()).unwrap();
    (settings.views, settings.dimensions) = (definitions.views, definitions.dimensions);
    settings.rules.clear();
    settings.insight = serde_json::from_value(serde_json::json!({})).unwrap();
    // Nothing here is cut off by a power failure.
    settings.store.durable = false;
    settings
}

/// A line of an input.
struct Line<'a> {
    topic: Arc<str>,
    offset: i64,
    value: &'a str,
}

impl Incoming for Line<'_> {
    fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    fn partition(&self) -> i32 {
        0
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn timestamp_ms(&self) -> Option<i64> {
        Some(0)
    }

    fn key(&self) -> Option<&[u8]> {
        None
    }

    fn value(&self) -> Option<&[u8]> {
        Some(self.value.as_bytes())
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        Vec::new()
    }
}

/// Closes windows, without the ticks: there are billions until the end.
async fn close(core: &mut Core) -> anyhow::Result<()> {
    let closed = core.engine.advance().await?;
    core.store_windows(closed)
}
