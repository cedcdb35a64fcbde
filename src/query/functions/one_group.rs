//! Runs a vectorised aggregate over a single group: for queries without GROUP BY, and for the frames of windows.
//!
//! Holds no arithmetic of its own: each aggregate is written once, as a `GroupsAccumulator`.

use std::collections::VecDeque;
use std::fmt::Debug;

use arrow::array::{Array, ArrayRef};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};

/// An [`Accumulator`] made of a [`GroupsAccumulator`] that is only ever given group 0.
#[derive(Debug)]
pub struct OneGroup<G>(G);

impl<G: GroupsAccumulator + Debug + Sync> OneGroup<G> {
    pub fn new(groups: G) -> Self {
        OneGroup(groups)
    }

    /// Takes the state out and puts it back: a running window evaluates after every row and goes on.
    fn peek_state(&mut self) -> Result<Vec<ArrayRef>> {
        let state = self.0.state(EmitTo::All)?;
        self.put_back(&state)?;
        Ok(state)
    }

    fn put_back(&mut self, state: &[ArrayRef]) -> Result<()> {
        let rows = state.first().map_or(0, |column| column.len());
        self.0.merge_batch(state, &vec![0; rows], rows)
    }
}

impl<G: GroupsAccumulator + Debug + Sync> Accumulator for OneGroup<G> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = values.first().map_or(0, |column| column.len());
        self.0.update_batch(values, &vec![0; rows], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |column| column.len());
        self.0.merge_batch(states, &vec![0; rows], 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let state = self.peek_state()?;
        let value = self.0.evaluate(EmitTo::All)?;
        self.put_back(&state)?;
        first_or_null(&value)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.state(EmitTo::All)?.iter().map(first_or_null).collect()
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

/// The same for a frame that slides over the rows of a window. The rows of the frame are kept, and gone through anew for
/// each answer: what a sketch or a line has taken in cannot be taken out again.
#[derive(Debug)]
pub struct Sliding<G> {
    groups: G,
    /// Pieces of rows, the oldest first.
    frame: VecDeque<Vec<ArrayRef>>,
}

impl<G> Sliding<G> {
    pub fn new(groups: G) -> Self {
        Sliding { groups, frame: VecDeque::new() }
    }
}

impl<G: GroupsAccumulator + Debug + Sync> Accumulator for Sliding<G> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.frame.push_back(values.to_vec());
        Ok(())
    }

    /// What leaves a frame are its oldest rows.
    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let mut leaving = rows_of(values);
        while leaving > 0 {
            let Some(piece) = self.frame.front_mut() else {
                return internal_err!("{leaving} rows left that never came");
            };
            let rows = rows_of(piece);
            if rows > leaving {
                piece.iter_mut().for_each(|column| *column = column.slice(leaving, rows - leaving));
                return Ok(());
            }
            leaving -= rows;
            self.frame.pop_front();
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        for piece in &self.frame {
            self.groups.update_batch(piece, &vec![0; rows_of(piece)], None, 1)?;
        }
        // Also takes the group out again.
        first_or_null(&self.groups.evaluate(EmitTo::All)?)
    }

    fn merge_batch(&mut self, _: &[ArrayRef]) -> Result<()> {
        internal_err!("the rows of a frame are in one place")
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        internal_err!("the rows of a frame are in one place")
    }

    /// The rows lie in batches that the window holds; only the references to them are ours.
    fn size(&self) -> usize {
        let references: usize = self.frame.iter().map(|piece| piece.capacity() * size_of::<ArrayRef>()).sum();
        self.groups.size() + self.frame.capacity() * size_of::<Vec<ArrayRef>>() + references
    }
}

fn rows_of(columns: &[ArrayRef]) -> usize {
    columns.first().map_or(0, |column| column.len())
}

/// No row at all means no group, hence nothing to take the value from.
fn first_or_null(column: &ArrayRef) -> Result<ScalarValue> {
    if column.is_empty() {
        return ScalarValue::try_new_null(column.data_type());
    }
    ScalarValue::try_from_array(column, 0)
}
