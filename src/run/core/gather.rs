//! One of several instances: records in; rows to the store, and partial states of the windows to be sent. Closes no
//! window.

use anyhow::Result;

use super::{Core, source_of};
use crate::ingest::Bounds;
use crate::model::time::EventTime;
use crate::run::incoming::{Incoming, Tally};
use crate::run::partition::Finder;
use crate::stream::Source;
use crate::stream::partial::Increment;
use crate::telemetry::instruments::Stage;

/// Where records in hand go to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Paths {
    pub store: bool,
    pub windows: bool,
}

impl Paths {
    pub const BOTH: Paths = Paths { store: true, windows: true };
}

impl Core {
    /// Takes in a batch of records, each accepted whole or refused whole. Partition by partition, as each has its own word
    /// on what is late; and apart where one path has dealt with records before and the other has not.
    pub fn gather<M: Incoming>(&mut self, batch: impl Iterator<Item = M>, bounds: Bounds) -> Result<()> {
        let mut tally = vec![Tally::default(); self.inputs.len()];
        let (mut finder, mut in_hand) = (Finder::default(), None);
        let mut decoding = None;
        for message in batch {
            // A partition given up since the record was fetched: its new owner reads it.
            let found = finder.find(&self.partitions, message.topic(), message.partition());
            let Some((at, partition)) = found.and_then(|at| Some((at, self.partitions.get(at)?))) else { continue };
            let (done, offset) = (partition.done_before, message.offset());
            let paths = Paths { store: !done.has_stored(offset), windows: !done.has_windowed(offset) };
            if let Some((before, paths)) = in_hand.replace((at, paths)).filter(|before| *before != (at, paths)) {
                drop(decoding.take());
                self.hand_over_gathered(before, paths)?;
            }
            decoding.get_or_insert_with(|| self.telemetry.stages.time(Stage::Decode));
            self.decode(at, &message, bounds, &mut tally);
        }
        drop(decoding);
        self.count(&tally);
        in_hand.map_or(Ok(()), |(at, paths)| self.hand_over_gathered(at, paths))
    }

    fn hand_over_gathered(&mut self, at: usize, paths: Paths) -> Result<()> {
        if let Some(partition) = self.partitions.get(at) {
            let (source, promised) = (source_of(self.inputs[partition.input].format), partition.promised);
            self.engine.stand_at(source, promised);
        }
        let _window = self.telemetry.stages.time(Stage::Window);
        self.hand_over(paths)
    }

    /// Makes each partition promise what it can: not to fall behind its newest row; nor, where it stands aside, behind what
    /// its source has come to elsewhere. Tells whether there is news.
    pub fn promise(&mut self, frontiers: [Option<EventTime>; 2]) -> bool {
        let mut moved = false;
        let keys: Vec<_> = self.partitions.iter().map(|partition| partition.key.clone()).collect();
        for key in keys {
            let Some(at) = self.partitions.find(&key.0, key.1) else { continue };
            let Some(partition) = self.partitions.get_mut(at) else { continue };
            let source = source_of(self.inputs[partition.input].format);
            let clock = self.engine.clock(source);
            let mut promised = partition.promised.max(clock.newest(&key));
            let idle = clock.is_idle(&key);
            if idle {
                promised = promised.max(frontiers[source as usize]);
            }
            moved |= promised != partition.promised || idle != partition.told_idle;
            (partition.promised, partition.told_idle) = (promised, idle);
        }
        moved
    }

    /// Takes out what was gathered since the last time.
    pub fn drain(&mut self) -> Result<Vec<Increment>> {
        Ok(self.engine.drain()?)
    }

    /// Forgets what was gathered and said and not yet sent: the partitions it is of were lost, and whoever has them now
    /// reads the same records.
    pub fn forget_unsent(&mut self) -> Result<()> {
        self.engine.drain()?;
        self.take_outbox();
        Ok(())
    }

    /// Tells whether a source has partitions that stand aside.
    pub fn has_idle(&mut self, source: Source) -> bool {
        self.engine.clock(source).any_idle()
    }
}
