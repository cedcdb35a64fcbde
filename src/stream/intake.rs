//! From pushed rows to what is aggregated: conditions, joins with dimension tables, group keys and arguments. Keeps what
//! it knows of series; keeps no rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray,
    UInt32Array,
};
use arrow::compute::{and, filter, filter_record_batch, is_not_null, take};
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;

use super::dimension::Lookup;
use super::keys::Keys;
use super::operand::{Operand, evaluate, holds};
use super::series::PerSeries;
use crate::model::batch::Samples;

/// Where the columns of an input stand that samples bring themselves.
pub(super) struct SampleColumns {
    pub ts: usize,
    pub value: usize,
}

/// What an aggregation does with its input, planned.
pub(super) struct Intake {
    /// Set where the rows are samples, whose other columns depend on the series.
    pub samples: Option<SampleColumns>,
    pub lookups: Vec<Lookup>,
    /// Conditions a row must meet, all of them.
    pub conditions: Vec<Operand>,
    pub keys: Vec<Operand>,
    /// Arguments of aggregates.
    pub columns: Vec<Operand>,
    /// Filters of aggregates.
    pub masks: Vec<Operand>,
    /// Expressions over the columns of series, then of the dimension tables.
    pub statics: Vec<Arc<dyn PhysicalExpr>>,
    /// The input's columns that rows must bring.
    pub needed: Vec<usize>,
    /// The statics that rows must bring.
    pub woven: Vec<usize>,
    pub row_schema: SchemaRef,
    /// What is known of the series so far.
    pub known: KnownSeries,
}

/// What is known of the series whose rows can pass. They are numbered among themselves, in order of first sight: where a
/// view reads few of many series, it holds little.
#[derive(Default)]
pub(super) struct KnownSeries {
    /// The number of each series here; of those that cannot pass, any.
    number_of: Vec<u32>,
    len: u32,
    /// The values of those statics that are read row by row.
    statics: BTreeMap<usize, PerSeries>,
    /// The key of each, where keys depend on the series alone.
    key_of: Vec<u32>,
}

/// Rows of one push that meet the conditions, and what they bring.
pub(super) struct Selection {
    /// Row numbers in what was pushed.
    pub rows: Vec<u32>,
    pub keys: Vec<u32>,
    pub columns: Vec<ArrayRef>,
    pub masks: Vec<BooleanArray>,
}

/// Candidate rows, with the columns that expressions over rows need.
pub(super) struct Candidates {
    pub rows: Vec<u32>,
    batch: RecordBatch,
    /// The series of each row, as [`KnownSeries`] numbers them.
    series: Option<UInt32Array>,
}

impl Intake {
    /// Tells whether the group of a row is known from its series.
    pub fn keys_per_series(&self) -> bool {
        self.samples.is_some() && self.keys.iter().all(|key| matches!(key, Operand::PerSeries(_)))
    }

    /// Takes in new series, given as [`super::series::columns`], and tells which of them have rows that can pass. Of the
    /// others nothing is computed or kept.
    pub fn extend_series(&mut self, new: &RecordBatch, keys: &mut Keys) -> Result<BooleanArray> {
        let (joined, mut passes) = self.join_series(new)?;
        for condition in &self.conditions {
            let Operand::PerSeries(at) = condition else { continue };
            passes = and(&passes, &holds(&evaluate(&self.statics[*at], &joined)?)?)?;
        }
        for pass in passes.values() {
            self.known.number_of.push(self.known.len);
            self.known.len += u32::from(pass);
        }
        if passes.true_count() > 0 {
            self.keep_series(&filter_record_batch(&joined, &passes)?, keys)?;
        }
        Ok(passes)
    }

    /// Puts the columns of dimension tables beside those of series; tells which have a partner in every table that asks
    /// for one.
    fn join_series(&self, new: &RecordBatch) -> Result<(RecordBatch, BooleanArray)> {
        let mut passes = BooleanArray::from(vec![true; new.num_rows()]);
        let mut columns = new.columns().to_vec();
        for lookup in &self.lookups {
            let (found, joined) = lookup.join(&columns, new.num_rows())?;
            if !lookup.outer {
                passes = and(&passes, &is_not_null(&found)?)?;
            }
            columns.extend(joined);
        }
        Ok((unnamed(columns, new.num_rows())?, passes))
    }

    /// Keeps of series that can pass what their rows will need.
    fn keep_series(&mut self, passing: &RecordBatch, keys: &mut Keys) -> Result<()> {
        if self.keys_per_series() {
            let columns = self.keys.iter().map(|key| match key {
                Operand::PerSeries(at) => evaluate(&self.statics[*at], passing),
                Operand::PerRow(_) => unreachable!("checked just above"),
            });
            let columns = columns.collect::<Result<Vec<_>>>()?;
            self.known.key_of.extend(keys.intern(&columns, passing.num_rows())?);
        }
        for at in self.read_by_rows() {
            let values = evaluate(&self.statics[at], passing)?;
            self.known.statics.entry(at).or_default().extend(values)?;
        }
        Ok(())
    }

    /// Returns the statics that are read row by row. Conditions have done their part once it is known which series pass,
    /// and so have keys where they depend on the series alone.
    fn read_by_rows(&self) -> BTreeSet<usize> {
        let keys = if self.keys_per_series() { &[] } else { self.keys.as_slice() };
        let operands = keys.iter().chain(&self.columns).chain(&self.masks);
        let whole = operands.filter_map(|operand| match operand {
            Operand::PerSeries(at) => Some(*at),
            Operand::PerRow(_) => None,
        });
        whole.chain(self.woven.iter().copied()).collect()
    }

    /// Picks from samples the rows that meet the conditions. `rows` are of series that can pass.
    pub fn of_samples(&self, rows: Vec<u32>, samples: &Samples) -> Result<Candidates> {
        let series = rows.iter().map(|&row| self.known.number_of[samples.series[row as usize] as usize]);
        let series = UInt32Array::from_iter_values(series);
        let own = self.samples.as_ref().expect("only asked of intakes over samples");
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.row_schema.fields().len());
        for &at in &self.needed {
            if at == own.ts {
                let ts = rows.iter().map(|&row| samples.ts[row as usize]);
                columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(ts).with_timezone("UTC")));
            } else {
                debug_assert_eq!(at, own.value, "every other column of a sample depends on its series");
                let values = rows.iter().map(|&row| samples.value[row as usize]);
                columns.push(Arc::new(Float64Array::from_iter_values(values)));
            }
        }
        self.candidates(rows, columns, Some(series))
    }

    /// Picks from rows, all columns of the input but the window's, those that meet the conditions.
    pub fn of_rows(&self, input: &RecordBatch) -> Result<Candidates> {
        let mut rows: Vec<u32> = (0..input.num_rows() as u32).collect();
        // The window's bounds stand first; nothing reads them before the window is known.
        let filler = Arc::new(TimestampMicrosecondArray::new_null(input.num_rows()).with_timezone("UTC"));
        let mut columns: Vec<ArrayRef> = vec![filler.clone(), filler];
        columns.extend(input.columns().iter().cloned());
        for lookup in &self.lookups {
            let (found, mut joined) = lookup.join(&columns, rows.len())?;
            if !lookup.outer && found.null_count() > 0 {
                let matched = is_not_null(&found)?;
                rows = rows
                    .into_iter()
                    .zip(matched.values())
                    .filter(|(_, matched)| *matched)
                    .map(|(row, _)| row)
                    .collect();
                for column in columns.iter_mut().chain(&mut joined) {
                    *column = filter(column, &matched)?;
                }
            }
            columns.extend(joined);
        }
        let needed = self.needed.iter().map(|&at| Arc::clone(&columns[at])).collect();
        self.candidates(rows, needed, None)
    }

    fn candidates(
        &self,
        rows: Vec<u32>,
        mut columns: Vec<ArrayRef>,
        series: Option<UInt32Array>,
    ) -> Result<Candidates> {
        if let Some(series) = &series {
            for &at in &self.woven {
                columns.push(self.known.statics[&at].of(series)?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch = RecordBatch::try_new_with_options(self.row_schema.clone(), columns, &options)?;
        let mut candidates = Candidates { rows, batch, series };
        let mut all: Option<BooleanArray> = None;
        for condition in &self.conditions {
            let Operand::PerRow(expr) = condition else { continue };
            let holds = holds(&evaluate(expr, &candidates.batch)?)?;
            all = Some(match all {
                None => holds,
                Some(before) => and(&before, &holds)?,
            });
        }
        if let Some(keep) = all {
            candidates.keep(&keep)?;
        }
        Ok(candidates)
    }

    /// Evaluates keys and arguments for the rows that are left.
    pub fn select(&self, candidates: Candidates, keys: &mut Keys) -> Result<Selection> {
        let Candidates { rows, batch, series } = candidates;
        let operand = |operand: &Operand| match (operand, &series) {
            (Operand::PerRow(expr), _) => evaluate(expr, &batch),
            (Operand::PerSeries(at), Some(series)) => Ok(self.known.statics[at].of(series)?),
            (Operand::PerSeries(_), None) => unreachable!("only samples have series"),
        };
        let keys = match &series {
            Some(series) if self.keys_per_series() => {
                series.values().iter().map(|&series| self.known.key_of[series as usize]).collect()
            }
            _ => {
                let columns = self.keys.iter().map(operand).collect::<Result<Vec<_>>>()?;
                keys.intern(&columns, rows.len())?
            }
        };
        let columns = self.columns.iter().map(operand).collect::<Result<Vec<_>>>()?;
        let masks = self.masks.iter().map(|mask| holds(&operand(mask)?)).collect::<Result<Vec<_>>>()?;
        Ok(Selection { rows, keys, columns, masks })
    }
}

impl Candidates {
    /// Keeps the rows whose flag is set.
    pub fn keep(&mut self, flags: &BooleanArray) -> Result<()> {
        if flags.true_count() == flags.len() {
            return Ok(());
        }
        self.batch = filter_record_batch(&self.batch, flags)?;
        let kept = |row: &u32| flags.value(*row as usize);
        if let Some(series) = &mut self.series {
            *series = (0u32..).zip(series.values()).filter(|(at, _)| kept(at)).map(|(_, series)| *series).collect();
        }
        let mut at = 0u32..;
        self.rows.retain(|_| at.next().is_some_and(|at| kept(&at)));
        Ok(())
    }
}

impl Selection {
    /// Returns some of the rows.
    pub fn part(&self, at: Vec<u32>) -> Result<Selection> {
        let pick = |of: &[u32]| at.iter().map(|&at| of[at as usize]).collect::<Vec<u32>>();
        let (rows, keys) = (pick(&self.rows), pick(&self.keys));
        let at = UInt32Array::from(at);
        let columns = self.columns.iter().map(|column| Ok(take(column, &at, None)?)).collect::<Result<Vec<_>>>()?;
        let masks = self.masks.iter().map(|mask| {
            let taken = take(mask, &at, None)?;
            Ok(datafusion::common::cast::as_boolean_array(&taken)?.clone())
        });
        Ok(Selection { rows, keys, columns, masks: masks.collect::<Result<Vec<_>>>()? })
    }
}

/// Puts columns side by side; expressions find them by position.
pub(super) fn unnamed(columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let fields = columns
        .iter()
        .enumerate()
        .map(|(at, column)| arrow::datatypes::Field::new(at.to_string(), column.data_type().clone(), true));
    let schema = Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}
