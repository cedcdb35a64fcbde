//! Restart as a query: what the store holds is read back, and everything goes on from there.
//!
//! Series are interned again, each view takes up where its table stands, its open windows are aggregated anew from the
//! stored rows, and the loop catches up from its last saved memory over the views' rows.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use tracing::{info, warn};

use super::core::{Core, LOOP_APP, LOOP_TABLES, VIEW_APP};
use super::partition::DoneBefore;
use crate::model::batch::Samples;
use crate::model::series::{Descriptor, Interner, Kind, SeriesId};
use crate::model::time::EventTime;
use crate::store::{Store, columns};
use crate::stream::rebuild::LateBefore;
use crate::stream::watermark::PartitionKey;
use crate::stream::window::Window;
use crate::stream::{Emission, Source};

/// The position of a view that has emitted nothing and takes in all there is.
const FROM_THE_BEGINNING: i64 = 0;
/// The event time that a backfill takes in at once.
const SLICE: Duration = Duration::from_secs(3600);
/// Rows that a backfill leaves in front of a commit.
const BACKFILL_ROWS_MAX: usize = 100_000;

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
    for table in LOOP_TABLES {
        if let Some(tick) = store.position(table, LOOP_APP).await? {
            core.recorded_before.insert(table, EventTime::from_micros(tick));
        }
    }
    restore_loop(core, store).await?;
    feed_stored_windows(core, store, &views).await?;
    rebuild(core, store).await?;
    // After a crash, a view that has emitted nothing yet must not pass for a new one, whose rows of before are left out.
    store.commit().await.context("failed to note where new views begin")?;
    Ok(())
}

/// Brings the core of an instance that takes over the closing of windows to where the store stands, but for the open
/// windows that source rows are aggregated in: those come out of the topic of partial states.
pub async fn finisher(core: &mut Core, store: &Store) -> Result<()> {
    let views: Vec<String> = core.engine.views().map(|(view, _)| view.name.to_string()).collect();
    for view in &views {
        store.claim(view, &[VIEW_APP]).await?;
    }
    for table in LOOP_TABLES {
        if let Some(tick) = store.claim(table, &[LOOP_APP]).await?.into_iter().next().flatten() {
            core.recorded_before.insert(table, EventTime::from_micros(tick));
        }
    }
    store.claim("state", &[LOOP_APP]).await?;
    restore_loop(core, store).await?;
    feed_stored_windows(core, store, &views).await?;
    begin(core, store).await?;
    let context = session(store)?;
    refill(core, &context).await?;
    store.commit().await.context("failed to note where new views begin")?;
    Ok(())
}

/// Rebuilds the open windows of the views that have none yet: all after a start, the new and the changed ones after a
/// reload.
pub async fn rebuild(core: &mut Core, store: &Store) -> Result<()> {
    begin(core, store).await?;
    let context = session(store)?;
    refill(core, &context).await?;
    let mut late = late_before(core, &context).await?;
    rebuild_from(Source::Metrics, core, store, &context, &mut late).await?;
    rebuild_from(Source::Events, core, store, &context, &mut late).await?;
    core.engine.rebuilt();
    Ok(())
}

/// Says where views begin: where the store has them, also of one that was gone for a while; and one it knows nothing of in
/// a new store with its first row, beside older views where those stand, back by what it asks for.
async fn begin(core: &mut Core, store: &Store) -> Result<()> {
    let mut new = Vec::new();
    for (view, backfill) in core.engine.rebuilding() {
        match store.position(&view, VIEW_APP).await? {
            // One that has changed stands where it did; what it emitted last may wait for its commit still.
            _ if core.engine.closed_through(&view) > EventTime::MIN => {}
            Some(FROM_THE_BEGINNING) => {}
            Some(through) => core.engine.resume(&view, EventTime::from_micros(through)),
            None => new.push((view, backfill)),
        }
    }
    for (view, backfill) in new {
        let from = match core.engine.frontier(&view) {
            Some(frontier) => frontier - backfill,
            None => EventTime::from_micros(FROM_THE_BEGINNING),
        };
        if from.as_micros() > FROM_THE_BEGINNING {
            core.engine.resume(&view, from);
            info!(view = &*view, %from, "a new view begins");
        }
        store.append(&view, None, &[(VIEW_APP, from.as_micros().max(FROM_THE_BEGINNING))])?;
    }
    Ok(())
}

/// Finds the late rows of a partition that were stored and not sent. Their records are read again and pass by the windows,
/// which will not tell of them a second time.
pub async fn unsent_late(core: &mut Core, store: &Store, key: &PartitionKey, done: DoneBefore) -> Result<()> {
    if done.effects >= done.stored || !core.sends_late() {
        return Ok(());
    }
    let of_partition = col("topic").eq(lit(&*key.0)).and(col("partition").eq(lit(key.1)));
    let unsent = col("offset").gt_eq(lit(done.effects)).and(col("offset").lt(lit(done.stored)));
    let rows = session(store)?.table("late").await?.filter(of_partition.and(unsent))?;
    each_batch(rows, |batch| {
        let views = column(batch, "view")?.as_string::<i32>();
        let time = |name| Ok::<_, anyhow::Error>(column(batch, name)?.as_primitive::<TimestampMicrosecondType>());
        let (ts, closed_through) = (time("ts")?, time("closed_through")?);
        let offsets = column(batch, "offset")?.as_primitive::<Int64Type>();
        let series = column(batch, "series_id")?.as_primitive::<Int64Type>();
        let values = column(batch, "value")?.as_primitive::<Float64Type>();
        let events = column(batch, "event_id")?.as_string::<i32>();
        for row in 0..batch.num_rows() {
            let late = columns::LateRow {
                view: views.value(row).to_owned(),
                ts: EventTime::from_micros(ts.value(row)),
                closed_through: EventTime::from_micros(closed_through.value(row)),
                topic: key.0.to_string(),
                partition: key.1,
                offset: offsets.value(row),
                series_id: series.is_valid(row).then(|| series.value(row)),
                value: values.is_valid(row).then(|| values.value(row)),
                event_id: events.is_valid(row).then(|| events.value(row).to_owned()),
            };
            core.send_late_again(key, &late);
        }
        Ok(())
    })
    .await
    .context("failed to read the late rows that were not sent")
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
async fn restore_loop(core: &mut Core, store: &Store) -> Result<()> {
    let Some(tick) = store.position("state", LOOP_APP).await? else { return Ok(()) };
    let newest =
        session(store)?.table("state").await?.filter(col("watermark").eq(time(EventTime::from_micros(tick))))?;
    for batch in newest.limit(0, Some(1))?.collect().await?.iter().filter(|batch| batch.num_rows() > 0) {
        if let Err(error) = core.closed_loop.restore(column(batch, "body")?.as_string::<i32>().value(0)) {
            warn!(error = format!("{error:#}"), "the loop starts without its memory");
        }
    }
    Ok(())
}

/// Shows the loop the windows that its saved memory does not cover.
async fn feed_stored_windows(core: &mut Core, store: &Store, views: &[String]) -> Result<()> {
    let context = session(store)?;
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

async fn rebuild_from(
    source: Source,
    core: &mut Core,
    store: &Store,
    context: &SessionContext,
    late: &mut LateBefore,
) -> Result<()> {
    let mut rows = 0;
    for slice in slices(core, source, context).await? {
        let stored = slice.of(context, table_of(source)).await?;
        each_batch(stored, |batch| {
            rows += batch.num_rows();
            match source {
                Source::Metrics => take_samples(core, batch, late),
                Source::Events => Ok(core.engine.rebuild_from_events(batch, late)?),
            }
        })
        .await
        .with_context(|| format!("failed to rebuild open windows from {}", table_of(source)))?;
        settle(core, store, source, &slice).await?;
    }
    info!(rows, from = table_of(source), "open windows rebuilt");
    Ok(())
}

fn table_of(source: Source) -> &'static str {
    match source {
        Source::Metrics => "samples",
        Source::Events => "events",
    }
}

fn take_samples(core: &mut Core, batch: &RecordBatch, late: &mut LateBefore) -> Result<()> {
    let ids = column(batch, "series_id")?.as_primitive::<Int64Type>();
    let ts = column(batch, "ts")?.as_primitive::<TimestampMicrosecondType>();
    let values = column(batch, "value")?.as_primitive::<Float64Type>();
    let mut samples = Samples::default();
    for row in 0..batch.num_rows() {
        let series = core.interner.find(SeriesId(ids.value(row))).context("a stored sample has no stored series")?;
        samples.push(series, EventTime::from_micros(ts.value(row)), values.value(row));
    }
    Ok(core.engine.rebuild_from_samples(&samples, &core.interner, late)?)
}

/// Stored rows of `[from, to)`, either end open where it is none.
struct Slice {
    from: Option<EventTime>,
    to: Option<EventTime>,
}

impl Slice {
    async fn of(&self, context: &SessionContext, table: &str) -> Result<DataFrame> {
        let mut rows = context.table(table).await?;
        if let Some(from) = self.from {
            rows = rows.filter(col("ts").gt_eq(time(from)))?;
        }
        if let Some(to) = self.to {
            rows = rows.filter(col("ts").lt(time(to)))?;
        }
        Ok(rows)
    }
}

/// Cuts what is needed of a source into slices, in order of time. What is settled already comes hour by hour, so that
/// its windows can be closed on the way and a long backfill takes no more memory than a short one; the rest in one.
async fn slices(core: &Core, source: Source, context: &SessionContext) -> Result<Vec<Slice>> {
    let Some(from) = core.engine.needs_from(source) else { return Ok(Vec::new()) };
    let from = Some(from).filter(|from| *from > EventTime::MIN);
    let settled = core.engine.settled_before(source);
    let (Some(mut at), Some(settled)) = (from, settled) else { return Ok(vec![Slice { from, to: None }]) };
    let mut slices = Vec::new();
    if at + SLICE < settled {
        // A backfill may ask for more than there is.
        let whole = Slice { from, to: None }.of(context, table_of(source)).await?;
        let first = whole.aggregate(Vec::new(), vec![min(col("ts"))])?.collect().await?;
        let first = first.first().map(|batch| batch.column(0).as_primitive::<TimestampMicrosecondType>().clone());
        match first.filter(|first| first.is_valid(0)) {
            Some(first) => at = at.max(EventTime::from_micros(first.value(0))),
            None => at = settled,
        }
    }
    while at + SLICE < settled {
        let to = at.floor(SLICE) + SLICE;
        slices.push(Slice { from: Some(at), to: Some(to) });
        at = to;
    }
    slices.push(Slice { from: Some(at), to: None });
    Ok(slices)
}

/// Closes the windows that a slice has settled, and stores their rows.
async fn settle(core: &mut Core, store: &Store, source: Source, slice: &Slice) -> Result<()> {
    let Some(to) = slice.to else { return Ok(()) };
    let closed = core.engine.settle(source, to).await?;
    core.store_windows(closed)?;
    if store.head_rows() > BACKFILL_ROWS_MAX {
        store.commit().await?;
        info!(through = %to, "filling back");
    }
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
