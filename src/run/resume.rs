//! Restart as a query: what the store holds is read back, and everything goes on from there.
//!
//! Series are interned again, each view takes up where its table stands, its open windows are aggregated anew from the
//! stored rows, and the loop catches up from its last saved memory over the views' rows.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use tracing::{info, warn};

use super::core::{Core, LOOP_APP, LOOP_TABLES, VIEW_APP};
use crate::model::batch::Samples;
use crate::model::series::{Descriptor, Interner, Kind, SeriesId};
use crate::model::time::EventTime;
use crate::store::Store;
use crate::stream::rebuild::LateBefore;
use crate::stream::window::Window;
use crate::stream::{Emission, Source};

/// Opens the tables of a store, as of now, for reading back.
fn session(store: &Store) -> Result<SessionContext> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for (name, table) in store.pin() {
        context.register_table(name.as_str(), table)?;
    }
    Ok(context)
}

fn time(at: EventTime) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(at.as_micros()), Some("UTC".into())))
}

/// Returns an interner that knows every stored series.
pub async fn series(store: &Store, series_max: usize) -> Result<Interner> {
    let mut interner = Interner::new(series_max);
    let stored = session(store)?.table("series").await?;
    each_batch(stored, |batch| {
        let ids = column(batch, "series_id")?.as_primitive::<Int64Type>();
        let words = |name| Ok::<_, anyhow::Error>(column(batch, name)?.as_string::<i32>());
        let (names, kinds, units) = (words("name")?, words("kind")?, words("unit")?);
        let labels = column(batch, "labels")?.as_map();
        for row in 0..batch.num_rows() {
            let pairs = labels.value(row);
            let (keys, values) = (pairs.column(0).as_string::<i32>(), pairs.column(1).as_string::<i32>());
            let mut described = Descriptor {
                name: names.value(row),
                labels: (0..pairs.len()).map(|at| (keys.value(at), values.value(at))).collect(),
                kind: Kind::parse(kinds.value(row)).unwrap_or_default(),
                unit: units.value(row),
            };
            interner.restore(SeriesId(ids.value(row)), &mut described);
        }
        Ok(())
    })
    .await
    .context("failed to read the stored series")?;
    Ok(interner)
}

/// Brings a new core to where the store stands. Emits nothing: the ticks wait for the first assignment, which tells
/// what was emitted before.
pub async fn core(core: &mut Core, store: &Store) -> Result<()> {
    let views: Vec<String> = core.engine.views().map(|(view, _)| view.name.to_string()).collect();
    for view in &views {
        if let Some(through) = store.position(view, VIEW_APP).await? {
            core.engine.resume(view, EventTime::from_micros(through));
        }
    }
    for table in LOOP_TABLES {
        if let Some(tick) = store.position(table, LOOP_APP).await? {
            core.recorded_before.insert(table, EventTime::from_micros(tick));
        }
    }
    let context = session(store)?;
    refill(core, &context).await?;
    restore_loop(core, store, &context).await?;
    feed_stored_windows(core, &context, &views).await?;
    let mut late = late_before(core, &context).await?;
    rebuild_from_samples(core, &context, &mut late).await?;
    rebuild_from_events(core, &context, &mut late).await?;
    core.engine.rebuilt();
    Ok(())
}

/// Returns the stored rows that were late for views whose closed windows are needed again.
async fn late_before(core: &Core, context: &SessionContext) -> Result<LateBefore> {
    let mut late = LateBefore::default();
    for (view, number, from) in core.engine.needs_late() {
        let rows = context.table("late").await?.filter(col("view").eq(lit(&*view)).and(col("ts").gt_eq(time(from))))?;
        each_batch(rows, |batch| {
            let ts = column(batch, "ts")?.as_primitive::<TimestampMicrosecondType>();
            let series = column(batch, "series_id")?.as_primitive::<Int64Type>();
            let values = column(batch, "value")?.as_primitive::<Float64Type>();
            let events = column(batch, "event_id")?.as_string::<i32>();
            for row in 0..batch.num_rows() {
                let at = EventTime::from_micros(ts.value(row));
                if events.is_valid(row) {
                    late.add_event(number, events.value(row).to_owned(), at);
                } else if let Some(series) = core.interner.find(SeriesId(series.value(row))) {
                    late.add_sample(number, series, at, values.value(row));
                }
            }
            Ok(())
        })
        .await
        .context("failed to read the late rows")?;
    }
    Ok(late)
}

/// Takes up the memory that was saved last. One that does not read, as after an upgrade, is done without: the loop then
/// learns anew from the stored windows.
async fn restore_loop(core: &mut Core, store: &Store, context: &SessionContext) -> Result<()> {
    let Some(tick) = store.position("state", LOOP_APP).await? else { return Ok(()) };
    let newest = context.table("state").await?.filter(col("watermark").eq(time(EventTime::from_micros(tick))))?;
    for batch in newest.limit(0, Some(1))?.collect().await?.iter().filter(|batch| batch.num_rows() > 0) {
        if let Err(error) = core.closed_loop.restore(column(batch, "body")?.as_string::<i32>().value(0)) {
            warn!(error = format!("{error:#}"), "the loop starts without its memory");
        }
    }
    Ok(())
}

/// Shows the loop the windows that its saved memory does not cover.
async fn feed_stored_windows(core: &mut Core, context: &SessionContext, views: &[String]) -> Result<()> {
    let cuts: BTreeMap<String, Window> =
        core.engine.views().map(|(view, _)| (view.name.to_string(), view.window)).collect();
    for (view, cut) in views.iter().filter_map(|view| Some((view, cuts.get(view)?))) {
        let mut rows = context.table(view.as_str()).await?;
        let tick = core.closed_loop.tick();
        if let Some(tick) = tick {
            // The newest window before the tick is what the rules still see.
            rows = rows.filter(col("window_end").gt(time(tick - cut.slide())))?;
        }
        let closed_loop = &mut core.closed_loop;
        let mut take = |whole: Emission| match tick.is_some_and(|tick| whole.window.end <= tick) {
            true => closed_loop.show_again(&whole),
            false => closed_loop.feed(whole),
        };
        each_window(view, cut, rows, |whole| {
            take(whole);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Gives the views that read other views the rows these have stored, as far as their open windows need them.
async fn refill(core: &mut Core, context: &SessionContext) -> Result<()> {
    for refill in core.engine.refills() {
        let read = core.engine.views().find(|(view, _)| view.name == refill.from_view);
        let (cut, schema) = read.map(|(view, schema)| (view.window, schema)).context("a view is read that is none")?;
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut rows = context.table(&*refill.from_view).await?.select_columns(&columns)?;
        if refill.needs_from > EventTime::MIN {
            rows = rows.filter(col("window_end").gt_eq(time(refill.needs_from)))?;
        }
        let engine = &mut core.engine;
        each_window(&refill.from_view, &cut, rows, |whole| Ok(engine.refill(&refill, &whole)?)).await?;
    }
    Ok(())
}

/// Gives the stored rows of a view to a function, window by window in order of time.
async fn each_window(
    view: &str,
    cut: &Window,
    rows: DataFrame,
    mut take: impl FnMut(Emission) -> Result<()>,
) -> Result<()> {
    let rows = rows.sort(vec![col("window_end").sort(true, true)])?;
    let mut open: Option<Emission> = None;
    each_batch(rows, |batch| {
        for emission in windows(view, cut, batch)? {
            // A window may be cut in two by the border between batches.
            match &mut open {
                Some(same) if same.window == emission.window => {
                    let schema = same.rows.schema();
                    same.rows = arrow::compute::concat_batches(&schema, [&same.rows, &emission.rows])?;
                }
                _ => {
                    if let Some(whole) = open.replace(emission) {
                        take(whole)?;
                    }
                }
            }
        }
        Ok(())
    })
    .await?;
    open.map_or(Ok(()), take)
}

/// Splits rows, sorted by window, into windows.
fn windows(view: &str, cut: &Window, batch: &RecordBatch) -> Result<Vec<Emission>> {
    let ends = column(batch, "window_end")?.as_primitive::<TimestampMicrosecondType>();
    let window = |row: usize| cut.emission(EventTime::from_micros(ends.value(row)));
    let mut emissions = Vec::new();
    let mut from = 0;
    for row in 1..=batch.num_rows() {
        if row < batch.num_rows() && window(row) == window(from) {
            continue;
        }
        emissions.push(Emission { view: view.into(), window: window(from), rows: batch.slice(from, row - from) });
        from = row;
    }
    Ok(emissions)
}

async fn rebuild_from_samples(core: &mut Core, context: &SessionContext, late: &mut LateBefore) -> Result<()> {
    let mut samples = context.table("samples").await?;
    if let Some(from) = core.engine.needs_from(Source::Metrics) {
        samples = samples.filter(col("ts").gt_eq(time(from)))?;
    }
    let mut rows = 0;
    let (engine, interner) = (&mut core.engine, &core.interner);
    each_batch(samples, |batch| {
        let ids = column(batch, "series_id")?.as_primitive::<Int64Type>();
        let ts = column(batch, "ts")?.as_primitive::<TimestampMicrosecondType>();
        let values = column(batch, "value")?.as_primitive::<Float64Type>();
        let mut samples = Samples::default();
        for row in 0..batch.num_rows() {
            let series = interner.find(SeriesId(ids.value(row))).context("a stored sample has no stored series")?;
            samples.push(series, EventTime::from_micros(ts.value(row)), values.value(row));
        }
        rows += samples.len();
        Ok(engine.rebuild_from_samples(&samples, interner, late)?)
    })
    .await
    .context("failed to rebuild open windows from samples")?;
    info!(rows, "open windows rebuilt from samples");
    Ok(())
}

async fn rebuild_from_events(core: &mut Core, context: &SessionContext, late: &mut LateBefore) -> Result<()> {
    let mut events = context.table("events").await?;
    if let Some(from) = core.engine.needs_from(Source::Events) {
        events = events.filter(col("ts").gt_eq(time(from)))?;
    }
    let mut rows = 0;
    let engine = &mut core.engine;
    each_batch(events, |batch| {
        rows += batch.num_rows();
        Ok(engine.rebuild_from_events(batch, late)?)
    })
    .await
    .context("failed to rebuild open windows from events")?;
    info!(rows, "open windows rebuilt from events");
    Ok(())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a arrow::array::ArrayRef> {
    batch.column_by_name(name).with_context(|| format!("the stored table has no column {name}"))
}

/// Gives each batch of a query to a function, one at a time, so that memory stays flat.
async fn each_batch(frame: DataFrame, mut f: impl FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
    let mut stream = frame.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() > 0 {
            f(&batch)?;
        }
    }
    Ok(())
}
