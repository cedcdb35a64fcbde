//! When the loop's memory is saved: now and then, and never ahead of what was emitted, as a restart from it would leave a
//! gap.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::core::{Core, LOOP_APP, VIEW_APP};
use crate::model::time::EventTime;
use crate::store::{Store, columns};

const SAVE_INTERVAL: Duration = Duration::from_secs(30);

pub struct Memory {
    saved_at: Instant,
    /// The tick whose memory was taken last.
    saved: Option<EventTime>,
    /// How far each view was said to have come, last.
    told: BTreeMap<String, EventTime>,
    /// The memory as of the flush on its way.
    pending: Option<(EventTime, String)>,
}

impl Memory {
    pub fn new(now: Instant) -> Memory {
        Memory { saved_at: now, saved: None, told: BTreeMap::new(), pending: None }
    }

    /// Makes it due at the next flush.
    pub fn hurry(&mut self) {
        self.saved_at = self.saved_at.checked_sub(SAVE_INTERVAL).unwrap_or(self.saved_at);
    }

    /// Takes the loop's memory as of `through`, the tick that the next flush emits through, and notes how far the views
    /// have come, where that is due.
    pub fn take(&mut self, core: &mut Core, store: &Store, through: Option<EventTime>, now: Instant) -> Result<()> {
        if now.duration_since(self.saved_at) < SAVE_INTERVAL {
            return Ok(());
        }
        self.saved_at = now;
        // Views that had nothing to emit move on too: a restart need not look for their windows in old rows.
        for at in core.engine.progress().filter(|at| at.closed_through > EventTime::MIN) {
            if self.told.get(at.view) != Some(&at.closed_through) {
                store.append(at.view, None, &[(VIEW_APP, at.closed_through.as_micros())])?;
                self.told.insert(at.view.to_owned(), at.closed_through);
            }
        }
        if let Some(tick) = through.filter(|tick| self.saved.is_none_or(|saved| *tick > saved)) {
            self.pending = core.closed_loop.save()?.map(|text| (tick, text));
            self.saved = Some(tick);
        }
        Ok(())
    }

    /// Stores what was taken, once what it is of has landed.
    pub fn landed(&mut self, store: &Store, through: Option<EventTime>) -> Result<()> {
        let Some((tick, body)) = self.pending.take_if(|(tick, _)| Some(*tick) <= through) else { return Ok(()) };
        let row = columns::StateRow { watermark: tick, body };
        let batch = columns::records(&[row], &store.schema("state")?)?;
        Ok(store.append("state", Some(batch), &[(LOOP_APP, tick.as_micros())])?)
    }
}
