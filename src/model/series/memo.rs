//! What spellings meant: a table by hash that is looked into once per record, at random.
//!
//! With a million series it is larger than any cache, and what a lookup costs is the lines of memory that it touches. The
//! general table touches two, its control bytes and the entry; this one mostly one.

use super::SeriesRef;

/// A table of spellings, open, probed one slot after the other.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// A power of two of them, or none.
    slots: Vec<Slot>,
    len: usize,
}

/// A spelling and its series. Of the 128 bits of a spelling 96 are kept: that two of a thousand million spellings agree in
/// these has a chance of one in 10^11.
#[derive(Clone, Copy, Debug)]
#[repr(align(16))]
struct Slot {
    key: [u32; 3],
    series: u32,
}

/// No series has this number.
const NOBODY: u32 = u32::MAX;
const EMPTY: Slot = Slot { key: [0; 3], series: NOBODY };
const SLOTS_MIN: usize = 64;

impl Memo {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, spelling: u128) -> Option<SeriesRef> {
        let slot = self.slots.get(self.find(key_of(spelling))?)?;
        (slot.series != NOBODY).then_some(SeriesRef(slot.series))
    }

    /// Remembers a spelling, in place of what it meant before.
    pub fn insert(&mut self, spelling: u128, series: SeriesRef) {
        // At five eighths a spelling is found in the second slot tried, as a rule; most are in the same line of memory.
        if (self.len + 1) * 8 > self.slots.len() * 5 {
            self.grow();
        }
        let Some(slot) = self.find(key_of(spelling)).and_then(|at| self.slots.get_mut(at)) else { return };
        self.len += usize::from(slot.series == NOBODY);
        *slot = Slot { key: key_of(spelling), series: series.0 };
    }

    pub fn remove(&mut self, spelling: u128) {
        let Some(mut gap) = self.find(key_of(spelling)).filter(|&at| self.slots[at].series != NOBODY) else { return };
        self.len -= 1;
        // Whatever was put further on because of the gap moves up, so that no search ends too soon.
        let mask = self.slots.len() - 1;
        let mut at = gap;
        loop {
            self.slots[gap] = EMPTY;
            loop {
                at = (at + 1) & mask;
                let slot = self.slots[at];
                if slot.series == NOBODY {
                    return;
                }
                let home = home_of(slot.key) & mask;
                if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                    self.slots[gap] = slot;
                    gap = at;
                    break;
                }
            }
        }
    }

    pub fn clear(&mut self) {
        self.slots.fill(EMPTY);
        self.len = 0;
    }

    /// Returns the slot that a spelling is in, or would be; none where there are no slots.
    fn find(&self, key: [u32; 3]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = home_of(key) & mask;
        while self.slots[at].series != NOBODY && self.slots[at].key != key {
            at = (at + 1) & mask;
        }
        Some(at)
    }

    fn grow(&mut self) {
        let slots = (self.slots.len() * 2).max(SLOTS_MIN);
        for slot in std::mem::replace(&mut self.slots, vec![EMPTY; slots]) {
            if slot.series != NOBODY
                && let Some(at) = self.find(slot.key)
            {
                self.slots[at] = slot;
            }
        }
    }
}

fn key_of(spelling: u128) -> [u32; 3] {
    [spelling as u32, (spelling >> 32) as u32, (spelling >> 64) as u32]
}

/// Returns where to look first, before it is brought within the table.
fn home_of(key: [u32; 3]) -> usize {
    (u64::from(key[1]) << 32 | u64::from(key[0])) as usize
}
