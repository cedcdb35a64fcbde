//! What the conductor shows of itself, now and then; and what is to be asked again as often. Changes nothing.

use std::time::Duration;

use super::{Conductor, Parts};
use crate::model::time::EventTime;
use crate::run::clock::Clock;
use crate::run::feed::Feed;
use crate::run::outlet::Exit;

const GAUGES_INTERVAL: Duration = Duration::from_secs(1);

impl<F: Feed, E: Exit, C: Clock> Conductor<F, E, C> {
    pub(super) fn show_gauges(&mut self) {
        if self.since(self.gauges_at) < GAUGES_INTERVAL {
            return;
        }
        self.gauges_at = self.parts.clock.now();
        let Parts { core, source, settings, clock, .. } = &mut self.parts;
        let topic = settings.inputs.first().map_or("", |input| &input.topic);
        self.idleness.probe(core, source, topic, || clock.now());
        if self.begun && self.partitions_total.is_none() {
            self.count_partitions();
        }
        let telemetry = &self.parts.telemetry;
        for (partition, lag) in self.parts.source.lag() {
            telemetry.broker.set_lag(&partition.topic, partition.partition, lag.max(0) as u64);
        }
        let now = self.parts.clock.time_of_day();
        for at in self.parts.core.engine.progress() {
            if at.closed_through > EventTime::MIN {
                telemetry.views.set_watermark_delay(at.view, now.since(at.closed_through));
            }
            telemetry.views.set_state(at.view, at.bytes as u64, at.counts.refused);
        }
        self.parts.board.set(self.parts.core.engine.explain());
        telemetry.store.set_head(self.parts.store.head_rows(), self.parts.store.head_bytes());
    }
}
