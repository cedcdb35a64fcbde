//! Many short texts in one piece of memory.

/// Texts by number, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Texts {
    all: String,
    /// Where each ends, which is where the next begins.
    ends: Vec<usize>,
}

impl Texts {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }

    pub fn get(&self, number: usize) -> Option<&str> {
        self.all.get(self.start(number)..*self.ends.get(number)?)
    }

    /// Forgets all but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.all.truncate(self.start(len));
        self.ends.truncate(len);
    }

    fn start(&self, number: usize) -> usize {
        match number.checked_sub(1) {
            None => 0,
            Some(before) => self.ends.get(before).copied().unwrap_or(self.all.len()),
        }
    }
}
