//! Many short texts in few pieces of memory.

/// Texts by number, in the order they came.
///
/// In pieces of a fixed number of texts: there may be millions, and what has been written once is not written again to make
/// room for more.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pieces: Vec<Piece>,
    len: usize,
}

#[derive(Debug, Default)]
struct Piece {
    all: String,
    /// Where each ends, which is where the next begins.
    ends: Vec<u32>,
}

const PIECE: usize = 1 << 14;

impl Texts {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds a text. A piece of them has to stay below 4 GiB, as it does by far where texts are bounded.
    pub fn push(&mut self, text: &str) {
        if self.len.is_multiple_of(PIECE) {
            self.pieces.push(Piece::default());
        }
        if let Some(last) = self.pieces.last_mut() {
            last.all.push_str(text);
            last.ends.push(last.all.len() as u32);
            self.len += 1;
        }
    }

    pub fn get(&self, number: usize) -> Option<&str> {
        self.pieces.get(number / PIECE)?.get(number % PIECE)
    }

    /// Forgets all but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.pieces.truncate(len.div_ceil(PIECE));
            if let Some(last) = self.pieces.last_mut() {
                last.truncate((len - 1) % PIECE + 1);
            }
            self.len = len;
        }
    }
}

impl Piece {
    fn get(&self, number: usize) -> Option<&str> {
        self.all.get(self.start(number)..*self.ends.get(number)? as usize)
    }

    fn truncate(&mut self, len: usize) {
        self.all.truncate(self.start(len));
        self.ends.truncate(len);
    }

    fn start(&self, number: usize) -> usize {
        match number.checked_sub(1) {
            None => 0,
            Some(before) => self.ends.get(before).map_or(self.all.len(), |&end| end as usize),
        }
    }
}
