//! One running view: rows into panes, panes into windows, windows out when the watermark passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{and, prep_null_mask_filter, take};
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};

use super::definition::Definition;
use super::keys::Keys;
use super::pane::{Groups, Pane};
use super::plan::{Operand, Plan, as_boolean, evaluate};
use super::series::{PerSeries, STATIC_COLUMNS, SeriesTable};
use super::{Emission, Late, Source, StreamError};
use crate::model::batch::Samples;
use crate::model::time::{EventTime, Span, micros};

/// Keys of a view that groups by what changes from row to row are forgotten once this many are out of use.
const UNUSED_KEYS_MAX: usize = 65_536;

pub(super) struct View {
    pub definition: Definition,
    plan: Plan,
    keys: Keys,
    /// By start, microseconds.
    panes: BTreeMap<i64, Pane>,
    pane_width: i64,
    /// Windows that end at or before this are closed.
    closed_through: i64,
    statics: Vec<PerSeries>,
    /// Of each series: whether its rows may pass, and its key where that depends on the series alone.
    passes: Vec<bool>,
    key_of: Vec<u32>,
}

/// Rows of one push that a view wants, and what they bring.
struct Selection {
    /// Row numbers in what was pushed.
    rows: Vec<u32>,
    keys: Vec<u32>,
    inputs: Vec<(Vec<ArrayRef>, Option<BooleanArray>)>,
}

impl View {
    pub fn new(definition: Definition, plan: Plan) -> Result<View, StreamError> {
        let keys = Keys::new(&plan.key_types)
            .map_err(|error| StreamError::Plan { file: definition.file.clone(), source: error.into() })?;
        let pane_width = gcd(micros(definition.window.width), micros(definition.window.slide));
        let statics = plan.statics.iter().map(|_| PerSeries::default()).collect();
        Ok(View {
            definition,
            plan,
            keys,
            panes: BTreeMap::new(),
            pane_width,
            closed_through: i64::MIN,
            statics,
            passes: Vec::new(),
            key_of: Vec::new(),
        })
    }

    pub fn source(&self) -> Source {
        self.plan.source
    }

    pub fn output_schema(&self) -> SchemaRef {
        self.plan.output.clone()
    }

    pub fn closed_through(&self) -> EventTime {
        EventTime::from_micros(self.closed_through)
    }

    pub fn bytes(&self) -> usize {
        self.panes.values().map(Pane::bytes).sum::<usize>() + self.keys.bytes()
    }

    pub fn resume(&mut self, through: EventTime) {
        self.closed_through = self.closed_through.max(through.as_micros());
    }

    /// Returns the start of the oldest window that is still to be emitted; `EventTime::MIN` where none ever was.
    pub fn needs_from(&self) -> EventTime {
        match self.closed_through {
            i64::MIN => EventTime::MIN,
            closed => EventTime::from_micros(closed.saturating_sub(micros(self.definition.window.width))),
        }
    }

    pub fn push_samples(
        &mut self,
        at: usize,
        samples: &Samples,
        series: &SeriesTable,
        late: &mut Vec<Late>,
    ) -> Result<(), StreamError> {
        let failed = self.failure();
        self.extend_series(series).map_err(&failed)?;
        let rows: Vec<u32> =
            samples.series.iter().zip(0u32..).filter(|(s, _)| self.passes[**s as usize]).map(|(_, row)| row).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let rows = self.drop_late(at, rows, &samples.ts, late);
        let selection = self.select_samples(rows, samples, series).map_err(&failed)?;
        self.accumulate(selection, &samples.ts).map_err(&failed)
    }

    pub fn push_events(&mut self, at: usize, events: &RecordBatch, late: &mut Vec<Late>) -> Result<(), StreamError> {
        let failed = self.failure();
        let ts = events.column_by_name("ts").and_then(|ts| ts.as_any().downcast_ref::<TimestampMicrosecondArray>());
        let ts = ts.expect("events carry their time in the column ts").values().clone();
        let rows = (0..events.num_rows() as u32).collect();
        let selection = self.select_events(rows, events).map_err(&failed)?;
        let kept = self.drop_late(at, selection.rows.clone(), &ts, late);
        let selection = match kept.len() == selection.rows.len() {
            true => selection,
            // Late events are rare: what was evaluated for them is not worth keeping apart.
            false => self.select_events(kept, events).map_err(&failed)?,
        };
        self.accumulate(selection, &ts).map_err(&failed)
    }

    fn failure(&self) -> impl Fn(DataFusionError) -> StreamError + use<> {
        let view = self.definition.name.to_string();
        move |source| StreamError::Aggregate { view: view.clone(), source }
    }

    /// Evaluates what depends on the series alone for the series that are new.
    fn extend_series(&mut self, series: &SeriesTable) -> Result<()> {
        let known = self.passes.len();
        if known == series.len() {
            return Ok(());
        }
        let new = series.since(known);
        let count = new.num_rows();
        let fresh: Vec<ArrayRef> = self.plan.statics.iter().map(|expr| evaluate(expr, &new)).collect::<Result<_>>()?;
        let mut passes = vec![true; count];
        for condition in &self.plan.conditions {
            let Operand::PerSeries(at) = condition else { continue };
            let holds = as_boolean(&fresh[*at])?;
            passes.iter_mut().zip(holds).for_each(|(pass, holds)| *pass &= holds == Some(true));
        }
        if self.plan.keys_per_series() {
            let keys: Vec<ArrayRef> = self.plan.keys.iter().map(|key| per_series(key, &fresh)).collect();
            let numbers = self.intern_passing(&keys, &passes)?;
            self.key_of.extend(numbers);
        }
        self.passes.extend(passes);
        for (cache, fresh) in self.statics.iter_mut().zip(fresh) {
            cache.extend(fresh)?;
        }
        Ok(())
    }

    /// Gives keys to the series that pass; the others never get one.
    fn intern_passing(&mut self, keys: &[ArrayRef], passes: &[bool]) -> Result<Vec<u32>> {
        let wanted: UInt32Array = passes.iter().zip(0u32..).filter(|(pass, _)| **pass).map(|(_, row)| row).collect();
        let keys = keys.iter().map(|column| Ok(take(column, &wanted, None)?)).collect::<Result<Vec<_>>>()?;
        let mut numbers = self.keys.intern(&keys, wanted.len())?.into_iter();
        let unused = 0;
        Ok(passes.iter().map(|&pass| if pass { numbers.next().unwrap_or(unused) } else { unused }).collect())
    }

    /// Drops rows whose last window is closed, noting them as late.
    fn drop_late(&self, at: usize, rows: Vec<u32>, ts: &[i64], late: &mut Vec<Late>) -> Vec<u32> {
        if self.closed_through == i64::MIN {
            return rows;
        }
        let (width, slide) = (micros(self.definition.window.width), micros(self.definition.window.slide));
        let mut kept = rows;
        kept.retain(|&row| {
            let ts = ts[row as usize];
            let last_end = ts - ts.rem_euclid(slide) + width;
            let open = last_end > self.closed_through;
            if !open {
                late.push(Late {
                    view: at,
                    row,
                    ts: EventTime::from_micros(ts),
                    closed_through: self.closed_through(),
                });
            }
            open
        });
        kept
    }

    fn select_samples(&mut self, rows: Vec<u32>, samples: &Samples, series: &SeriesTable) -> Result<Selection> {
        let refs: UInt32Array = rows.iter().map(|&row| samples.series[row as usize]).collect();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.plan.row_schema.fields().len());
        for field in self.plan.row_schema.fields() {
            columns.push(match field.name().as_str() {
                "ts" => {
                    let ts = rows.iter().map(|&row| samples.ts[row as usize]);
                    Arc::new(TimestampMicrosecondArray::from_iter_values(ts).with_timezone("UTC"))
                }
                "value" => {
                    Arc::new(Float64Array::from_iter_values(rows.iter().map(|&row| samples.value[row as usize])))
                }
                name => {
                    debug_assert!(STATIC_COLUMNS.contains(&name), "metrics have no other columns");
                    let column = series.column(name).expect("the columns of a series are fixed");
                    take(column, &refs, None)?
                }
            });
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch = RecordBatch::try_new_with_options(self.plan.row_schema.clone(), columns, &options)?;
        self.evaluate(rows, &batch, Some(&refs))
    }

    fn select_events(&mut self, rows: Vec<u32>, events: &RecordBatch) -> Result<Selection> {
        let wanted = UInt32Array::from(rows.clone());
        let mut columns = Vec::with_capacity(self.plan.row_schema.fields().len());
        for field in self.plan.row_schema.fields() {
            let column = events.column_by_name(field.name()).expect("planned over the columns of events");
            columns.push(take(column, &wanted, None)?);
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch = RecordBatch::try_new_with_options(self.plan.row_schema.clone(), columns, &options)?;
        self.evaluate(rows, &batch, None)
    }

    /// Applies the conditions, then evaluates keys and arguments for the rows that remain.
    fn evaluate(&mut self, rows: Vec<u32>, batch: &RecordBatch, refs: Option<&UInt32Array>) -> Result<Selection> {
        let Some(keep) = self.row_conditions(batch, refs)? else {
            return self.evaluate_kept(rows, batch, refs.cloned());
        };
        let kept: UInt32Array = (0u32..).zip(keep.iter()).filter(|(_, k)| *k == Some(true)).map(|(at, _)| at).collect();
        let rows = kept.values().iter().map(|&at| rows[at as usize]).collect();
        let refs = refs.map(|refs| kept.values().iter().map(|&at| refs.value(at as usize)).collect());
        self.evaluate_kept(rows, &arrow::compute::take_record_batch(batch, &kept)?, refs)
    }

    /// Returns which rows meet the conditions that depend on the row; none where there are no such.
    fn row_conditions(&self, batch: &RecordBatch, refs: Option<&UInt32Array>) -> Result<Option<BooleanArray>> {
        let mut all: Option<BooleanArray> = None;
        for condition in &self.plan.conditions {
            if refs.is_some() && matches!(condition, Operand::PerSeries(_)) {
                continue;
            }
            let holds = self.operand(condition, batch, refs)?;
            let holds = as_boolean(&holds)?.clone();
            all = Some(match all {
                None => holds,
                Some(before) => and(&before, &holds)?,
            });
        }
        Ok(all)
    }

    fn evaluate_kept(&mut self, rows: Vec<u32>, batch: &RecordBatch, refs: Option<UInt32Array>) -> Result<Selection> {
        let refs = refs.as_ref();
        let keys = match (self.plan.keys_per_series(), refs) {
            (true, Some(refs)) => refs.values().iter().map(|&series| self.key_of[series as usize]).collect(),
            _ => {
                let columns = self.plan.keys.iter().map(|key| self.operand(key, batch, refs));
                let columns = columns.collect::<Result<Vec<_>>>()?;
                self.keys.intern(&columns, rows.len())?
            }
        };
        let mut inputs = Vec::with_capacity(self.plan.aggregates.len());
        for aggregate in &self.plan.aggregates {
            let arguments = aggregate.arguments.iter().map(|argument| self.operand(argument, batch, refs));
            let arguments = arguments.collect::<Result<Vec<_>>>()?;
            let filter = aggregate.filter.as_ref().map(|filter| self.operand(filter, batch, refs)).transpose()?;
            let filter = filter.as_ref().map(holds).transpose()?;
            inputs.push((arguments, filter));
        }
        Ok(Selection { rows, keys, inputs })
    }

    fn operand(&self, operand: &Operand, batch: &RecordBatch, refs: Option<&UInt32Array>) -> Result<ArrayRef> {
        match (operand, refs) {
            (Operand::PerRow(expr), _) => evaluate(expr, batch),
            (Operand::PerSeries(at), Some(refs)) => {
                let values = self.statics[*at].values().expect("evaluated when the series was first seen");
                Ok(take(values, refs, None)?)
            }
            (Operand::PerSeries(_), None) => unreachable!("events have no series"),
        }
    }

    fn accumulate(&mut self, selection: Selection, ts: &[i64]) -> Result<()> {
        let Selection { rows, keys, inputs } = selection;
        let mut by_pane: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        let pane_of = |row: u32| {
            let ts = ts[row as usize];
            ts - ts.rem_euclid(self.pane_width)
        };
        let Some(first) = rows.first().map(|&row| pane_of(row)) else { return Ok(()) };
        if rows.iter().all(|&row| pane_of(row) == first) {
            return self.update_pane(first, &keys, &inputs);
        }
        for (at, &row) in (0u32..).zip(&rows) {
            by_pane.entry(pane_of(row)).or_default().push(at);
        }
        for (pane, at) in by_pane {
            let at = UInt32Array::from(at);
            let keys: Vec<u32> = at.values().iter().map(|&at| keys[at as usize]).collect();
            let inputs = inputs.iter().map(|input| take_input(input, &at)).collect::<Result<Vec<_>>>()?;
            self.update_pane(pane, &keys, &inputs)?;
        }
        Ok(())
    }

    fn update_pane(&mut self, pane: i64, keys: &[u32], inputs: &[(Vec<ArrayRef>, Option<BooleanArray>)]) -> Result<()> {
        let groups = self.panes.entry(pane).or_default().groups(&self.plan.aggregates)?;
        let assigned = groups.assign(keys.iter().copied());
        groups.update(inputs, &assigned)
    }

    /// Closes every window that ends at or before `watermark` and holds a row.
    pub fn close_through(&mut self, watermark: EventTime, into: &mut Vec<Emission>) -> Result<(), StreamError> {
        let watermark = watermark.as_micros();
        if watermark <= self.closed_through {
            return Ok(());
        }
        let failed = self.failure();
        while let Some(window) = self.next_window().filter(|window| window.end.as_micros() <= watermark) {
            let rows = self.close(window).map_err(&failed)?;
            // Windows start in steps of the slide: nothing before the next start is needed again.
            let next_start = window.start.as_micros() + micros(self.definition.window.slide);
            self.panes = self.panes.split_off(&next_start);
            self.closed_through = window.end.as_micros();
            if rows.num_rows() > 0 {
                into.push(Emission { view: self.definition.name.clone(), window, rows });
            }
        }
        self.closed_through = watermark;
        self.forget_unused_keys();
        Ok(())
    }

    /// Returns the first window that is not closed and holds a pane.
    fn next_window(&self) -> Option<Span> {
        let (width, slide) = (micros(self.definition.window.width), micros(self.definition.window.slide));
        let (&pane, _) = self.panes.first_key_value()?;
        let first = (pane - width).div_euclid(slide) + 1;
        // The first windows of a pane may be closed already where it was opened by a row that came in between.
        let open = self.closed_through.saturating_sub(width).div_euclid(slide).saturating_add(1);
        let start = first.max(open).saturating_mul(slide);
        let end = start.saturating_add(width);
        Some(Span::new(EventTime::from_micros(start), EventTime::from_micros(end)))
    }

    fn close(&mut self, window: Span) -> Result<RecordBatch> {
        let (start, end) = (window.start.as_micros(), window.end.as_micros());
        let mut groups = if self.pane_width == end - start {
            let pane = self.panes.remove(&start).unwrap_or_default();
            pane.into_groups(&self.plan.aggregates)?
        } else {
            let mut groups = Groups::new(&self.plan.aggregates)?;
            for pane in self.panes.range_mut(start..end).map(|(_, pane)| pane) {
                pane.merge_into(&mut groups)?;
            }
            groups
        };
        let results = groups.evaluate()?;
        let mut order: Vec<(u32, usize)> = groups.keys.iter().copied().zip(0..).collect();
        self.keys.sort(&mut order);
        let sorted: Vec<u32> = order.iter().map(|(key, _)| *key).collect();
        let at = UInt32Array::from_iter_values(order.iter().map(|(_, group)| *group as u32));
        let results = results.iter().map(|column| Ok(take(column, &at, None)?)).collect::<Result<Vec<_>>>()?;
        let bound = |micros: i64| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(vec![micros; sorted.len()]).with_timezone("UTC"))
        };
        self.plan.finish([bound(start), bound(end)], &self.keys.columns(&sorted)?, &results)
    }

    /// Keys that come from series stay as long as the series do; keys that come from rows are dropped when no open
    /// pane holds them and many such have gathered.
    fn forget_unused_keys(&mut self) {
        if self.plan.keys_per_series() || self.keys.len() < UNUSED_KEYS_MAX {
            return;
        }
        let mut used: Vec<u32> = self.panes.values().flat_map(Pane::keys).collect();
        used.sort_unstable();
        used.dedup();
        if self.keys.len() - used.len() < UNUSED_KEYS_MAX {
            return;
        }
        let renumbered = self.keys.compact(&used);
        self.panes.values_mut().for_each(|pane| pane.renumber(&renumbered));
    }
}

fn per_series(operand: &Operand, fresh: &[ArrayRef]) -> ArrayRef {
    match operand {
        Operand::PerSeries(at) => Arc::clone(&fresh[*at]),
        Operand::PerRow(_) => unreachable!("only asked for when every key depends on the series alone"),
    }
}

/// Returns where a condition holds; one that is NULL does not.
fn holds(condition: &ArrayRef) -> Result<BooleanArray> {
    let mask = as_boolean(condition)?;
    Ok(if mask.null_count() == 0 { mask.clone() } else { prep_null_mask_filter(mask) })
}

fn take_input(
    input: &(Vec<ArrayRef>, Option<BooleanArray>),
    at: &UInt32Array,
) -> Result<(Vec<ArrayRef>, Option<BooleanArray>)> {
    let (arguments, filter) = input;
    let arguments = arguments.iter().map(|column| Ok(take(column, at, None)?)).collect::<Result<Vec<_>>>()?;
    let filter = filter.as_ref().map(|mask| Ok::<_, DataFusionError>(as_boolean(&take(mask, at, None)?)?.clone()));
    Ok((arguments, filter.transpose()?))
}

fn gcd(a: i64, b: i64) -> i64 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}
