//! Restart as a query: what the store holds is read back, and everything goes on from there.
//!
//! Series are interned again, each view takes up where its table stands, its open windows are aggregated anew from the
//! stored rows, and the loop catches up from its last saved memory over the views' rows.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::functions_aggregate::expr_fn::min;
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use tracing::{info, warn};

use super::core::{Core, LOOP_APP, LOOP_TABLES, VIEW_APP};
use super::corrector;
use super::partition::DoneBefore;
use super::stored::{self, Slice, column, each_batch, session, table_of, time};
use crate::model::series::{Interner, SeriesId};
use crate::model::time::EventTime;
use crate::store::Store;
use crate::store::columns::LateRow;
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

/// Returns an interner that knows every stored series.
pub async fn series(store: &Store, series_max: usize) -> Result<Interner> {
    let mut interner = Interner::new(series_max);
    let stored = stored::session(store)?.table("series").await?;
    stored::intern(&mut interner, stored, |_| true).await?;
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
        let from = from.max(EventTime::from_micros(FROM_THE_BEGINNING));
        store.append(&view, None, &[(VIEW_APP, from.as_micros())])?;
        if let Some((view, _)) = core.engine.views().find(|(one, _)| *one.name == *view) {
            corrector::begins(store, view, from)?;
        }
    }
    Ok(())
}

/// Finds the late rows of a partition of which more is still to be said. Those that were stored and not sent: their records
/// are read again and pass by the windows, which will not tell of them a second time. And those whose records were not
/// stored: they are judged anew, and must not be noted twice.
pub async fn late_before_reading(core: &mut Core, store: &Store, key: &PartitionKey, done: DoneBefore) -> Result<()> {
    let unsent = if core.sends_late() { done.effects..done.stored } else { 0..0 };
    let judged_anew = done.stored..done.late;
    if unsent.is_empty() && judged_anew.is_empty() {
        return Ok(());
    }
    let of_partition = col("topic").eq(lit(&*key.0)).and(col("partition").eq(lit(key.1)));
    let from = if unsent.is_empty() { judged_anew.start } else { unsent.start };
    let rows = session(store)?.table("late").await?.filter(of_partition.and(col("offset").gt_eq(lit(from))))?;
    let mut known: BTreeMap<i64, Vec<LateRow>> = BTreeMap::new();
    each_batch(rows, |batch| {
        for late in stored::late_rows(batch)? {
            if unsent.contains(&late.offset) {
                core.send_late_again(key, &late);
            } else if judged_anew.contains(&late.offset) {
                known.entry(late.offset).or_default().push(late);
            }
        }
        Ok(())
    })
    .await
    .context("failed to read the late rows of a partition")?;
    core.know_late_before(key, known);
    Ok(())
}

/// Returns the stored rows that were late for views whose closed windows are needed again.
async fn late_before(core: &Core, context: &SessionContext) -> Result<LateBefore> {
    let mut late = LateBefore::default();
    for (view, number, from) in core.engine.needs_late() {
        let rows = context.table("late").await?.filter(col("view").eq(lit(&*view)).and(col("ts").gt_eq(time(from))))?;
        each_batch(rows, |batch| {
            for row in stored::late_rows(batch)? {
                if !core.engine.was_late_for_all(number, row.ts, row.closed_through) {
                    continue;
                }
                match (row.event_id, row.series_id.and_then(|id| core.interner.find(SeriesId(id)))) {
                    (Some(event), _) => late.add_event(number, event, row.ts),
                    (None, Some(series)) => late.add_sample(number, series, row.ts, row.value.unwrap_or_default()),
                    (None, None) => {}
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
                Source::Metrics => {
                    let samples = stored::samples(&core.interner, batch)?;
                    Ok(core.engine.rebuild_from_samples(&samples, &core.interner, late)?)
                }
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
