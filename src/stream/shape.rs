//! What an aggregation takes in and keeps, while views are still being added to it: two views that read the same rows
//! under the same keys share one.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;

use super::Source;
use super::dimension::{Lookup, Table};
use super::intake::{Intake, KnownSeries, SampleColumns};
use super::operand::{Operand, Operands};
use super::pane::Aggregate;
use super::plan::Origin;
use super::window::Window;
use crate::model::time::micros;

/// An aggregate as a view asks for it, over the input's columns.
#[derive(Clone)]
pub(super) struct Call {
    pub function: Arc<AggregateFunctionExpr>,
    pub words: String,
    /// As a person writes it.
    pub sql: String,
    pub arguments: Vec<Arc<dyn PhysicalExpr>>,
    pub filter: Option<Arc<dyn PhysicalExpr>>,
}

pub(super) struct Shape {
    pub origin: Origin,
    pub window: Window,
    input: SchemaRef,
    fixed: BTreeSet<usize>,
    operands: Operands,
    lookups: Vec<Lookup>,
    conditions: Vec<Operand>,
    keys: Vec<Operand>,
    pub key_types: Vec<DataType>,
    columns: Vec<Operand>,
    masks: Vec<Operand>,
    pub aggregates: Vec<Aggregate>,
    calls: Vec<Call>,
    /// What is done with a row before it is aggregated, for people.
    pub steps: Vec<String>,
    /// Set where the windows of one view must not mix with those of others.
    pub alone: bool,
}

impl Shape {
    /// `fixed` are the columns of the input that depend on the series alone.
    pub fn new(origin: Origin, window: Window, input: SchemaRef, fixed: BTreeSet<usize>) -> Shape {
        Shape {
            origin,
            window,
            operands: Operands::new(input.clone(), fixed.clone()),
            input,
            fixed,
            lookups: Vec::new(),
            conditions: Vec::new(),
            keys: Vec::new(),
            key_types: Vec::new(),
            columns: Vec::new(),
            masks: Vec::new(),
            aggregates: Vec::new(),
            calls: Vec::new(),
            steps: Vec::new(),
            alone: false,
        }
    }

    /// Joins the input with a dimension table; `on` is over the columns so far, `columns` are the table's.
    pub fn join(
        &mut self,
        on: Vec<Arc<dyn PhysicalExpr>>,
        table: &Table,
        columns: &[usize],
        outer: bool,
        sql: &str,
    ) -> Result<Result<(), String>> {
        let metrics = self.origin == Origin::Source(Source::Metrics);
        if metrics && on.iter().any(|on| !collect_columns(on).iter().all(|c| self.fixed.contains(&c.index()))) {
            let message =
                format!("metrics are joined with {} by what their series tells (name, labels, …)", table.name);
            return Ok(Err(message));
        }
        let words = format!("{} {outer} {columns:?} {on:?}", table.name);
        let (kind, often) = (if outer { "left join" } else { "join" }, if metrics { ", once per series" } else { "" });
        self.steps.push(format!("{kind} {} on {sql}{often}", table.name));
        // Of samples only the columns of series are there when partners are looked for.
        let placed = on.into_iter().map(|on| {
            let placed = on.transform_down(|node| {
                Ok(match node.downcast_ref::<Column>() {
                    Some(column) if metrics => {
                        let at = self.fixed.range(..column.index()).count();
                        Transformed::yes(Arc::new(Column::new(column.name(), at)) as Arc<dyn PhysicalExpr>)
                    }
                    _ => Transformed::no(node),
                })
            });
            Ok(placed?.data)
        });
        let lookup = Lookup::new(words, placed.collect::<Result<_>>()?, table, columns, outer)?;
        Ok(lookup.map(|lookup| self.lookups.push(lookup)))
    }

    /// Adds a condition; `sql` is how a person writes it, here and below.
    pub fn condition(&mut self, expr: Arc<dyn PhysicalExpr>, sql: &str) -> Result<()> {
        let operand = self.add("where", expr, sql)?;
        self.conditions.push(operand);
        Ok(())
    }

    pub fn key(&mut self, expr: Arc<dyn PhysicalExpr>, of: DataType, sql: &str) -> Result<()> {
        let operand = self.add("key", expr, sql)?;
        self.keys.push(operand);
        self.key_types.push(of);
        Ok(())
    }

    fn add(&mut self, what: &str, expr: Arc<dyn PhysicalExpr>, sql: &str) -> Result<Operand> {
        let operand = self.operands.add(expr)?;
        let often = if matches!(operand, Operand::PerSeries(_)) { ", once per series" } else { "" };
        self.steps.push(format!("{what} {sql}{often}"));
        Ok(operand)
    }

    /// Adds an aggregate where it is new; returns its number.
    pub fn call(&mut self, call: Call) -> Result<usize> {
        let arguments = call
            .arguments
            .iter()
            .map(|argument| Ok(number(&mut self.columns, self.operands.add(Arc::clone(argument))?)))
            .collect::<Result<Vec<_>>>()?;
        let filter = match &call.filter {
            None => None,
            Some(filter) => Some(number(&mut self.masks, self.operands.add(Arc::clone(filter))?)),
        };
        let same =
            |known: &Aggregate| known.words == call.words && known.arguments == arguments && known.filter == filter;
        if let Some(at) = self.aggregates.iter().position(same) {
            return Ok(at);
        }
        let (function, words, sql) = (Arc::clone(&call.function), call.words.clone(), call.sql.clone());
        self.aggregates.push(Aggregate { function, words, sql, arguments, filter });
        self.calls.push(call);
        Ok(self.aggregates.len() - 1)
    }

    /// Returns the width of the panes that all its windows are made of, microseconds.
    pub fn pane_width(&self) -> i64 {
        pane_width(self.window)
    }

    /// Takes another view's shape in, where it reads the same rows under the same keys and the panes of one serve both.
    /// Returns where its aggregates are found here.
    pub fn take_in(&mut self, other: &Shape) -> Result<Option<Vec<usize>>> {
        let same = !(self.alone || other.alone)
            && self.origin == other.origin
            && self.input == other.input
            && self.lookups.iter().map(|l| &l.words).eq(other.lookups.iter().map(|l| &l.words))
            && self.operands.same(&self.conditions, &other.operands, &other.conditions)
            && self.operands.same(&self.keys, &other.operands, &other.keys)
            && panes_agree(self.window, other.window);
        if !same {
            return Ok(None);
        }
        if pane_width(other.window) < pane_width(self.window) {
            self.window = other.window;
        }
        Ok(Some(other.calls.iter().map(|call| self.call(call.clone())).collect::<Result<_>>()?))
    }

    /// Returns what tells this from every other by what it computes, in short. `steps` are its own.
    pub fn identity(&self, steps: &[String]) -> String {
        let window = match self.window {
            Window::Hop { .. } => format!("panes of {}", self.pane_width()),
            session @ Window::Session { .. } => format!("{session:?}"),
        };
        let aggregates: Vec<&str> = self.aggregates.iter().map(|aggregate| aggregate.sql.as_str()).collect();
        let words = format!("{:?} {window} {:?} {steps:?} {aggregates:?}", self.origin, self.key_types);
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(words.as_bytes()))
    }

    /// Ends the adding.
    pub fn into_intake(self) -> Result<(Intake, Vec<Aggregate>)> {
        let place = |all: &[Operand]| all.iter().map(|one| self.operands.place(one)).collect::<Result<Vec<_>>>();
        let samples = (self.origin == Origin::Source(Source::Metrics)).then(|| SampleColumns {
            ts: self.input.index_of("ts").expect("metrics have a time"),
            value: self.input.index_of("value").expect("metrics have a value"),
        });
        let intake = Intake {
            samples,
            conditions: place(&self.conditions)?,
            keys: place(&self.keys)?,
            columns: place(&self.columns)?,
            masks: place(&self.masks)?,
            statics: self.operands.statics()?,
            needed: self.operands.needed().iter().copied().collect(),
            woven: self.operands.woven().iter().copied().collect(),
            row_schema: self.operands.row_schema()?,
            known: KnownSeries::default(),
            lookups: self.lookups,
        };
        Ok((intake, self.aggregates))
    }
}

fn number(known: &mut Vec<Operand>, operand: Operand) -> usize {
    known.iter().position(|one| *one == operand).unwrap_or_else(|| {
        known.push(operand);
        known.len() - 1
    })
}

fn pane_width(window: Window) -> i64 {
    match window {
        Window::Hop { width, slide } => gcd(micros(width), micros(slide)),
        Window::Session { gap, .. } => micros(gap),
    }
}

/// Panes serve both windows where the finer ones make up the coarser; what each session view keeps is its own.
fn panes_agree(a: Window, b: Window) -> bool {
    match (a, b) {
        (Window::Hop { .. }, Window::Hop { .. }) => {
            let (a, b) = (pane_width(a), pane_width(b));
            gcd(a, b) == a.min(b)
        }
        _ => false,
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}
