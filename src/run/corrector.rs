//! Corrections: windows that rows came too late for are computed anew from the store, in the background, and kept as
//! versions beside what was emitted. What was emitted stands, and what was said on its grounds is not taken back.
//!
//! Doing the same again changes nothing: a version is written only where rows differ from the newest. So a crash may fall
//! between any two steps, and the position over the late rows only saves work. What is dirty is told by too much rather than
//! too little.

mod versions;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use tokio::sync::watch;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::core::VIEW_APP;
use super::partition::{Held, HeldPartition};
use super::settings::Settings;
use super::stored::{self, Slice, column, each_batch, table_of};
use crate::model::series::{Interner, SeriesId};
use crate::model::time::{EventTime, Span};
use crate::query::{CORRECTED, REVISION, WITHDRAWN};
use crate::store::columns::{self, LateRow};
use crate::store::{Store, TableSpec};
use crate::stream::definition::{Definition, family};
use crate::stream::dimension::Table;
use crate::stream::rebuild::LateBefore;
use crate::stream::{Emission, Engine, Source};
use crate::telemetry::Telemetry;

/// The event time that is read at once: windows are closed behind it, so that few are open at a time.
const SLICE: Duration = Duration::from_secs(300);
/// The event time that one pass goes over, and the gap between windows that begins another.
const PASS: Duration = Duration::from_secs(3600);
/// The name under which a table of versions remembers where the present meaning of its view begins.
const SINCE_APP: &str = "bellwether/since";
/// How often it is looked whether a view is due.
const LOOK: Duration = Duration::from_millis(500);

/// Returns the table of a view's versions: its own columns, all but the window's bounds empty where a window is withdrawn.
pub fn table_spec(view: &Definition, schema: &SchemaRef) -> TableSpec {
    let is_bound = |field: &Field| matches!(field.name().as_str(), "window_start" | "window_end");
    let of_view = schema.fields().iter().map(|field| field.as_ref().clone());
    let of_view = of_view.map(|field| if is_bound(&field) { field } else { field.with_nullable(true) });
    let own = [Field::new(REVISION, DataType::Int64, false), Field::new(WITHDRAWN, DataType::Boolean, false)];
    TableSpec {
        name: corrected(view),
        schema: Arc::new(Schema::new(of_view.chain(own).collect::<Vec<_>>())),
        day_of: None,
        sort_by: vec!["window_end".to_owned()],
        compact_by: &[],
        unique_by: None,
    }
}

fn corrected(view: &Definition) -> String {
    format!("{}{CORRECTED}", view.name)
}

/// Notes that a view begins anew: what it emitted before is of another meaning, or is not there, and stays so.
pub fn begins(store: &Store, view: &Definition, at: EventTime) -> Result<()> {
    match view.correct_every {
        Some(_) => Ok(store.append(&corrected(view), None, &[(SINCE_APP, at.as_micros())])?),
        None => Ok(()),
    }
}

/// What is running.
pub struct Current {
    pub settings: Arc<Settings>,
    /// The dimension tables as the running views have them.
    pub tables: Vec<Table>,
}

/// Corrects the views that ask for it.
pub struct Corrector {
    store: Arc<Store>,
    held: Held,
    telemetry: Telemetry,
    /// What the plans are made of, and those made so far.
    current: Arc<Current>,
    plans: HashMap<Arc<str>, Plan>,
    /// By table and partition: the late rows below were looked at in this run.
    looked_at: HashMap<(String, String), i64>,
}

/// A partition with late rows that may not have been looked at.
struct Due {
    /// Its name in the store's transactions.
    app: String,
    /// From this offset on.
    from: i64,
    /// Records below are in the store, with whatever they were late for.
    stored: i64,
    /// Below this all is done after this turn.
    done: i64,
    has_late: bool,
}

/// By topic and number.
type DuePartitions = HashMap<(String, i32), Due>;

impl Corrector {
    pub fn new(store: Arc<Store>, held: Held, current: Arc<Current>, telemetry: Telemetry) -> Corrector {
        Corrector { store, held, telemetry, current, plans: HashMap::new(), looked_at: HashMap::new() }
    }

    /// Corrects each view as often as it says, for good. `current`: what is running, whenever that changes.
    pub async fn run(mut self, current: watch::Receiver<Arc<Current>>) {
        let mut corrected_at: HashMap<Arc<str>, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            if !Arc::ptr_eq(&self.current, &current.borrow()) {
                self.current = current.borrow().clone();
                self.plans.clear();
            }
            for view in &self.current.settings.clone().views {
                let Some(every) = view.correct_every else { continue };
                if corrected_at.get(&view.name).is_some_and(|last| last.elapsed() < every) {
                    continue;
                }
                if let Err(error) = self.correct(view).await {
                    warn!(view = &*view.name, error = format!("{error:#}"), "corrections are tried again later");
                }
                corrected_at.insert(view.name.clone(), Instant::now());
            }
        }
    }

    /// Corrects the windows of a view that rows were too late for, of all rows that are committed by now. Returns how many
    /// windows have a new version.
    ///
    /// # Errors
    /// A store that cannot be read. The next call does what this one did not.
    pub async fn correct(&mut self, view: &Definition) -> Result<usize> {
        let table = corrected(view);
        let mut due = self.due(&table).await?;
        let closed = self.store.position(&view.name, VIEW_APP).await?;
        let (Some(closed), false) = (closed.map(EventTime::from_micros), due.is_empty()) else { return Ok(0) };
        // Pinned after the positions: whatever they cover is in it.
        let context = stored::session(&self.store)?;
        let mut plan = match self.plans.remove(&view.name) {
            Some(plan) => plan,
            None => Plan::of(view, &self.current).await?,
        };
        let since = self.store.position(&table, SINCE_APP).await?.map_or(EventTime::MIN, EventTime::from_micros);
        // A changed view may have begun beyond what it has stored so far.
        let within = Span::new(since.min(closed), closed);
        let windows = self.correct_by(&mut plan, &context, &mut due, within).await;
        self.plans.insert(view.name.clone(), plan);
        let windows = windows?;
        let moved = due.values().filter(|due| due.has_late).map(|due| (due.app.as_str(), due.done));
        let moved: Vec<(&str, i64)> = moved.collect();
        if !moved.is_empty() {
            self.store.append(&table, None, &moved)?;
        }
        for Due { app, done, .. } in due.into_values() {
            self.looked_at.insert((table.clone(), app), done);
        }
        self.telemetry.views.corrected(&view.name, windows as u64);
        if windows > 0 {
            info!(view = &*view.name, windows, "windows corrected");
        }
        Ok(windows)
    }

    /// `within`: the windows that end after its start and at or before its end are the view's own.
    async fn correct_by(
        &mut self,
        plan: &mut Plan,
        context: &SessionContext,
        due: &mut DuePartitions,
        within: Span,
    ) -> Result<usize> {
        let missed = plan.missed(context, due, within).await?;
        let mut windows = 0;
        for run in runs(&plan.unanswered(&missed)) {
            let made = plan.compute(context, run).await?;
            let versions = plan.versions(context, run, made).await?;
            windows += versions.len();
            if let Some(first) = versions.first() {
                let rows = concat_batches(first.schema_ref(), &versions)?;
                self.store.append(&corrected(&plan.view), Some(rows), &[])?;
            }
        }
        plan.answered = missed;
        Ok(windows)
    }

    /// Returns the partitions of which late rows may be stored that were not looked at.
    async fn due(&mut self, table: &str) -> Result<DuePartitions> {
        let mut due = DuePartitions::new();
        for HeldPartition { key, app, table: of_records } in self.held.list() {
            let stored = self.store.position(of_records, &app).await?.unwrap_or(0);
            let before = self.store.position(table, &app).await?.unwrap_or(0);
            let looked_at = self.looked_at.get(&(table.to_owned(), app.clone())).copied();
            let from = looked_at.unwrap_or(0).max(before);
            if from < stored {
                due.insert((key.0.to_string(), key.1), Due { app, from, stored, done: stored, has_late: false });
            }
        }
        Ok(due)
    }
}

/// Cuts windows, in order, into those that one pass goes over.
fn runs(mut dirty: &[Span]) -> impl Iterator<Item = &[Span]> {
    std::iter::from_fn(move || {
        let first = dirty.first()?;
        let is_near = |pair: &[Span]| pair[1].start.since(pair[0].end) <= PASS && pair[1].end.since(first.end) <= PASS;
        let len = 1 + dirty.windows(2).take_while(|pair| is_near(pair)).count();
        let (run, rest) = dirty.split_at(len);
        dirty = rest;
        Some(run)
    })
}

/// How one view is corrected: it, and all views it reads.
struct Plan {
    view: Definition,
    family: Vec<Definition>,
    tables: Vec<Table>,
    schema: SchemaRef,
    /// Takes in no row; tells what the views mean.
    engine: Engine,
    /// The windows that the last turn found, with what each lacked: nothing new is to be said of those. They are found
    /// again as long as one of a row's windows is open.
    answered: BTreeMap<Span, Lacking>,
}

/// Which late rows a window lacks, whatever the order they were found in. A number of rows would not do: the one row that
/// a window lacks now need not be the one that it lacked before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lacking {
    /// The sum of the hashes of the rows.
    rows: u64,
}

impl Lacking {
    fn add(&mut self, row: &LateRow) {
        let LateRow { view, topic, partition, offset, .. } = row;
        self.rows = self.rows.wrapping_add(xxh3_64(format!("{view} {topic} {partition} {offset}").as_bytes()));
    }
}

impl Plan {
    async fn of(view: &Definition, current: &Current) -> Result<Plan> {
        let mut family: Vec<Definition> = family(&current.settings.views, &view.reads).into_iter().cloned().collect();
        family.push(view.clone());
        // No group may be left out that the windows had: a bound would make a window of many look as if it had few.
        family.iter_mut().for_each(|view| view.state_bytes_max = usize::MAX);
        let tables = current.tables.clone();
        let engine = engine(&family, &tables).await?;
        let schema = engine.views().last().context("the view was planned")?.1;
        Ok(Plan { view: view.clone(), family, tables, schema, engine, answered: BTreeMap::new() })
    }

    /// Returns the closed windows that may lack rows, and which. Where one of a row's windows is not closed yet, the row
    /// is looked at again the next time.
    async fn missed(
        &mut self,
        context: &SessionContext,
        due: &mut DuePartitions,
        within: Span,
    ) -> Result<BTreeMap<Span, Lacking>> {
        let names = self.family.iter().map(|view| lit(&*view.name)).collect();
        let from = due.values().map(|due| due.from).min().unwrap_or(0);
        let rows = context.table("late").await?;
        let rows = rows.filter(col("view").in_list(names, false).and(col("offset").gt_eq(lit(from))))?;
        let mut missed: BTreeMap<Span, Lacking> = BTreeMap::new();
        // An engine may move to another thread, and not be seen from two.
        let (found, engine) = (&mut missed, &mut self.engine);
        each_batch(rows, move |batch| {
            for row in stored::late_rows(batch)? {
                let Some(due) = due.get_mut(&(row.topic.clone(), row.partition)) else { continue };
                if !(due.from..due.stored).contains(&row.offset) {
                    continue;
                }
                due.has_late = true;
                for window in engine.missed(&row.view, row.ts).into_iter().filter(|window| window.end > within.start) {
                    match window.end <= within.end {
                        true => found.entry(window).or_default().add(&row),
                        false => due.done = due.done.min(row.offset),
                    }
                }
            }
            Ok(())
        })
        .await
        .context("failed to read the late rows")?;
        Ok(missed)
    }

    fn unanswered(&self, missed: &BTreeMap<Span, Lacking>) -> Vec<Span> {
        missed
            .iter()
            .filter(|(window, lacking)| self.answered.get(window) != Some(lacking))
            .map(|(window, _)| *window)
            .collect()
    }

    /// Computes windows anew, from the first of a run to the last: what the view had emitted if no row had been late.
    async fn compute(&mut self, context: &SessionContext, run: &[Span]) -> Result<Vec<Emission>> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(Vec::new()) };
        let mut engine = engine(&self.family, &self.tables).await?;
        let to = last.end + engine.begin_with(*first);
        let mut interner = Interner::new(usize::MAX);
        let mut made = Vec::new();
        for source in [Source::Metrics, Source::Events] {
            let Some(mut at) = engine.needs_from(source) else { continue };
            while at < to {
                let slice = Slice { from: Some(at), to: Some(to.min(at.floor(SLICE) + SLICE)) };
                at = take_in(&mut engine, &mut interner, context, source, slice).await?;
                let closed = engine.settle(source, at).await?.into_iter();
                let is_wanted = |one: &Emission| one.view == self.view.name && run.binary_search(&one.window).is_ok();
                made.extend(closed.filter(is_wanted));
            }
        }
        Ok(made)
    }

    /// Makes a new version of each window of a run whose rows are not those of its newest.
    async fn versions(
        &mut self,
        context: &SessionContext,
        run: &[Span],
        made: Vec<Emission>,
    ) -> Result<Vec<RecordBatch>> {
        let emitted = versions::newest(context, &self.view.name, &self.schema, run).await?;
        let newest = versions::newest(context, &corrected(&self.view), &self.schema, run).await?;
        let mut by_window: BTreeMap<Span, Vec<RecordBatch>> = BTreeMap::new();
        made.into_iter().for_each(|emission| by_window.entry(emission.window).or_default().push(emission.rows));
        let mut made_anew = Vec::new();
        for window in run {
            let rows = concat_batches(&self.schema, by_window.get(window).into_iter().flatten())?;
            let before = newest.get(window).or(emitted.get(window));
            if versions::comparable(&rows) == before.map_or(&[][..], |before| &before.rows) {
                continue;
            }
            let revision = newest.get(window).map_or(1, |newest| newest.revision + 1);
            made_anew.push(self.version(*window, &rows, revision)?);
        }
        Ok(made_anew)
    }

    fn version(&self, window: Span, rows: &RecordBatch, revision: i64) -> Result<RecordBatch> {
        let schema = table_spec(&self.view, &self.schema).schema;
        let (count, withdrawn) = (rows.num_rows().max(1), rows.num_rows() == 0);
        let column = |field: &Arc<Field>| -> Result<ArrayRef> {
            let bound = |at: EventTime| TimestampMicrosecondArray::from_value(at.as_micros(), 1).with_timezone("UTC");
            Ok(match field.name().as_str() {
                REVISION => Arc::new(Int64Array::from_value(revision, count)),
                WITHDRAWN => Arc::new(BooleanArray::from(vec![withdrawn; count])),
                "window_start" if withdrawn => Arc::new(bound(window.start)),
                "window_end" if withdrawn => Arc::new(bound(window.end)),
                _ if withdrawn => new_null_array(field.data_type(), 1),
                name => stored::column(rows, name)?.clone(),
            })
        };
        let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

async fn engine(family: &[Definition], tables: &[Table]) -> Result<Engine> {
    let events = columns::record_tables().into_iter().find(|table| table.name == "events");
    let events = events.context("the table events is one of ours")?;
    Ok(Engine::new(family.to_vec(), tables, &events.schema).await?)
}

/// Gives an engine the stored rows of a slice; returns where the slice ends.
async fn take_in(
    engine: &mut Engine,
    interner: &mut Interner,
    context: &SessionContext,
    source: Source,
    slice: Slice,
) -> Result<EventTime> {
    let mut none_late = LateBefore::default();
    if source == Source::Metrics {
        let mut seen: HashSet<i64> = HashSet::new();
        let ids = slice.of(context, table_of(source)).await?.select_columns(&["series_id"])?.distinct()?;
        each_batch(ids, |batch| {
            let ids = column(batch, "series_id")?.as_primitive::<Int64Type>().values();
            seen.extend(ids.iter().filter(|id| interner.find(SeriesId(**id)).is_none()));
            Ok(())
        })
        .await?;
        if !seen.is_empty() {
            stored::intern(interner, context.table("series").await?, |id| seen.contains(&id.0)).await?;
        }
    }
    let rows = slice.of(context, table_of(source)).await?;
    each_batch(rows, |batch| match source {
        Source::Metrics => {
            Ok(engine.rebuild_from_samples(&stored::samples(interner, batch)?, interner, &mut none_late)?)
        }
        Source::Events => Ok(engine.rebuild_from_events(batch, &mut none_late)?),
    })
    .await
    .with_context(|| format!("failed to read rows of {} again", table_of(source)))?;
    slice.to.context("a slice to compute anew has an end")
}
