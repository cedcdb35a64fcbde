//! What time does: windows close, their rows are stored, and the ticks that became due are run, recorded and emitted.

use anyhow::Result;
use serde::Serialize;

use super::super::{effects, rows};
use super::{Core, LOOP_APP, VIEW_APP};
use crate::model::time::EventTime;
use crate::run::closed_loop::Tick;
use crate::store::columns;
use crate::stream::Emission;

impl Core {
    /// Closes what the watermarks have passed, stores the rows, and runs the ticks that became due.
    pub async fn advance(&mut self) -> Result<Vec<Tick>> {
        let closed = self.engine.advance().await?;
        self.store_windows(closed)?;
        self.run_ticks().await
    }

    /// Stores the rows of closed windows, and shows them to the loop.
    pub fn store_windows(&mut self, closed: Vec<Emission>) -> Result<()> {
        for emission in closed {
            let end = emission.window.end.as_micros();
            self.telemetry.views.emitted(&emission.view, emission.rows.num_rows() as u64);
            self.store.append(&emission.view, Some(emission.rows.clone()), &[(VIEW_APP, end)])?;
            self.closed_loop.feed(emission);
        }
        Ok(())
    }

    /// Runs the ticks that are due.
    pub async fn run_ticks(&mut self) -> Result<Vec<Tick>> {
        let Some(complete) = self.engine.complete_through() else { return Ok(Vec::new()) };
        let mut ticks = Vec::new();
        while let Some(tick) = self.closed_loop.step(complete).await? {
            self.record(&tick)?;
            if tick.at > self.emitted_before {
                self.emit(&tick);
            }
            ticks.push(tick);
        }
        Ok(ticks)
    }

    /// Puts what a tick gave into the loop's tables, unless an earlier run has.
    fn record(&self, tick: &Tick) -> Result<()> {
        self.record_in("anomalies", tick.at, &tick.anomalies)?;
        self.record_in("forecasts", tick.at, &tick.forecasts)?;
        self.record_in("alerts", tick.at, &tick.alerts)?;
        self.record_in("decisions", tick.at, &tick.decisions)
    }

    fn record_in<T: Serialize>(&self, table: &'static str, at: EventTime, records: &[T]) -> Result<()> {
        if records.is_empty() || self.recorded_before.get(table).is_some_and(|&before| at <= before) {
            return Ok(());
        }
        let rows = columns::records(records, &self.store.schema(table)?)?;
        Ok(self.store.append(table, Some(rows), &[(LOOP_APP, at.as_micros())])?)
    }

    fn emit(&mut self, tick: &Tick) {
        let topics = &self.topics;
        self.outbox.extend(tick.anomalies.iter().map(|one| effects::anomaly(topics, one)));
        self.outbox.extend(tick.forecasts.iter().map(|one| effects::forecast(topics, one)));
        self.outbox.extend(tick.alerts.iter().map(|one| effects::alert(topics, one)));
        self.outbox.extend(tick.decisions.iter().map(|one| effects::decision(topics, one)));
        for emission in &tick.emissions {
            let Some((_, topic)) = self.view_topics.iter().find(|(view, _)| *view == emission.view) else { continue };
            for (key, row) in rows::as_json(&emission.rows) {
                self.outbox.push(effects::view_row(topic, &emission.view, emission.window.end, &key, &row));
            }
        }
    }
}
