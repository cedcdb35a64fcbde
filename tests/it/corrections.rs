//! Corrections, over every golden view that can be corrected: fed record by record through the core into a store, and
//! corrected there, each view must read as if no row had been late.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use bellwether::config;
use bellwether::ingest::Bounds;
use bellwether::model::time::EventTime;
use bellwether::query;
use bellwether::run::core::Core;
use bellwether::run::corrector::{self, Corrector, Current};
use bellwether::run::incoming::Incoming;
use bellwether::run::partition::{DoneBefore, StoredAs};
use bellwether::run::service;
use bellwether::run::settings::Settings;
use bellwether::store::Store;
use bellwether::stream::Source;
use bellwether::stream::definition::{Definition, Definitions, family};
use bellwether::stream::window::Window;
use bellwether::telemetry::Telemetry;
use serde_json::Value;

use crate::views;

const BOUNDS: Bounds = Bounds { oldest: EventTime::MIN, newest: EventTime::MAX };
const INPUTS: [(&str, Source); 2] = [("metrics", Source::Metrics), ("events", Source::Events)];
/// Later than any row of a golden view, and a lateness within which none is late.
const END: &str = "2100-01-01T00:00:00Z";
const FOREVER: Duration = Duration::from_secs(20 * 365 * 86_400);

#[tokio::test]
async fn corrected_views_read_as_if_no_row_had_been_late() {
    let (mut corrected, mut changed, mut wrong) = (0, 0, Vec::new());
    for folder in views::folders() {
        match check(&folder).await {
            Ok(views) => {
                corrected += views.len();
                changed += views.iter().filter(|changed| **changed).count();
            }
            Err(what) => wrong.push(format!("{}: {what}", folder.file_name().unwrap().to_string_lossy())),
        }
    }
    println!("{corrected} views corrected, of which {changed} read otherwise before");
    assert!(wrong.is_empty(), "{} folders differ:\n{}", wrong.len(), wrong.join("\n"));
    // Where nothing is late, there is nothing to correct: that would prove nothing.
    assert!(changed >= 15, "only {changed} views have rows that came too late");
}

#[tokio::test]
async fn what_a_view_emitted_before_it_began_anew_stays() {
    let folder = views::folders().into_iter().find(|folder| folder.ends_with("tumble_late_rows")).unwrap();
    for (begins_at, stays) in [(EventTime::from_micros(0), false), (EventTime::MAX, true)] {
        let fed = Fed::of(&folder).await.unwrap();
        for view in fed.corrected() {
            corrector::begins(&fed.store, view, begins_at).unwrap();
            fed.store.commit().await.unwrap();
            assert_eq!(fed.corrector().correct(view).await.unwrap() == 0, stays, "{}", view.name);
        }
    }
}

/// Runs one folder; tells of each view that can be corrected whether it read otherwise before it was.
async fn check(folder: &Path) -> Result<Vec<bool>, String> {
    let mut patient = definitions(folder)?;
    patient.views.iter_mut().for_each(|view| view.lateness = FOREVER);
    let mut expected: BTreeMap<Arc<str>, Vec<RecordBatch>> = BTreeMap::new();
    for emission in views::run(folder, patient).await? {
        expected.entry(emission.view).or_default().push(emission.rows);
    }
    let fed = Fed::of(folder).await?;
    let (mut corrector, pinned) = (fed.corrector(), fed.store.clone());
    let limits = fed.settings.query.clone();
    let queries = query::Engine::new(limits, Arc::new(move || pinned.pin()), Vec::new()).unwrap();
    let mut changed = Vec::new();
    for view in fed.corrected() {
        let wanted = views::rows_as_json(expected.get(&view.name).map_or(&[], Vec::as_slice));
        let windows = corrector.correct(view).await.map_err(said)?;
        let compared = |rows: Vec<Value>| views::compare(wanted.clone(), rows, &views::tolerances(folder));
        compared(read(&queries, &view.name).await).map_err(|what| format!("{}: {what}", view.name))?;
        let emitted = compared(read(&queries, &format!("{}_emitted", view.name)).await);
        if windows == 0 {
            emitted.clone().map_err(|what| format!("{}, not corrected: {what}", view.name))?;
        }
        changed.push(emitted.is_err());
        fed.store.commit().await.map_err(|error| error.to_string())?;
        // Another process that knows nothing of this finds nothing to do.
        assert_eq!(fed.corrector().correct(view).await.map_err(said)?, 0, "{} is corrected twice", view.name);
    }
    Ok(changed)
}

fn said(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn definitions(folder: &Path) -> Result<Definitions, String> {
    Definitions::read(&views::sql_files(folder), views::DEFAULTS).map_err(|error| error.to_string())
}

/// A golden folder, all of whose records went through a core into a store.
struct Fed {
    settings: Arc<Settings>,
    store: Arc<Store>,
    core: Core,
    current: Arc<Current>,
    _home: tempfile::TempDir,
}

impl Fed {
    async fn of(folder: &Path) -> Result<Fed, String> {
        let mut definitions = definitions(folder)?;
        let before = definitions.views.clone();
        definitions.views.iter_mut().filter(|view| has_no_session(view, &before)).for_each(|view| {
            view.correct_every = Some(Duration::from_secs(1));
        });
        let home = tempfile::tempdir().unwrap();
        let settings = Arc::new(settings(home.path(), definitions));
        let engine = service::engine(&settings).await.map_err(said)?;
        let current = Arc::new(Current { settings: settings.clone(), tables: engine.dimensions().to_vec() });
        let store = Store::open(&settings.store, service::table_specs(&engine)).await.map_err(|e| e.to_string())?;
        let store = Arc::new(store);
        let mut core = service::build_core(&settings, engine, &store, &Telemetry::default()).await.map_err(said)?;
        feed(&mut core, folder).await.map_err(said)?;
        store.commit().await.map_err(|error| error.to_string())?;
        Ok(Fed { settings, store, core, current, _home: home })
    }

    fn corrector(&self) -> Corrector {
        Corrector::new(self.store.clone(), self.core.held.clone(), self.current.clone(), Telemetry::default())
    }

    fn corrected(&self) -> impl Iterator<Item = &Definition> {
        self.settings.views.iter().filter(|view| view.correct_every.is_some())
    }
}

fn has_no_session(view: &Definition, views: &[Definition]) -> bool {
    let mut all = family(views, &view.reads);
    all.push(view);
    all.iter().all(|view| matches!(view.window, Window::Hop { .. }))
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

/// A line of a golden input.
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

async fn feed(core: &mut Core, folder: &Path) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for (name, source) in INPUTS {
        let Ok(text) = fs::read_to_string(folder.join(format!("{name}.ndjson"))) else { continue };
        let named = StoredAs { app: format!("cluster/{name}/0"), topic_id: name.to_owned() };
        core.assign((name.into(), 0), named, 0, DoneBefore::default())?;
        texts.push((name, source, text));
    }
    for (name, _, text) in &texts {
        for (offset, value) in (0..).zip(text.lines()) {
            core.ingest(std::iter::once(Line { topic: Arc::from(*name), offset, value }), BOUNDS)?;
            close(core).await?;
        }
    }
    let end = EventTime::parse_rfc3339(END).unwrap();
    for (name, source, _) in &texts {
        core.engine.clock(*source).observe(&((*name).into(), 0), end);
    }
    close(core).await
}

/// Closes windows, without the ticks: there are billions until the end.
async fn close(core: &mut Core) -> anyhow::Result<()> {
    let closed = core.engine.advance().await?;
    core.store_windows(closed)
}

async fn read(queries: &query::Engine, table: &str) -> Vec<Value> {
    let answer = queries.run(&format!("SELECT * FROM {table}")).await.unwrap();
    views::rows_as_json(&answer.collect().await.unwrap())
}
