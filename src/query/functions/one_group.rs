//! Runs a vectorised aggregate over a single group, for queries without GROUP BY and for windows.
//!
//! Holds no arithmetic of its own: each aggregate is written once, as a `GroupsAccumulator`.

use arrow::array::{Array, ArrayRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use std::fmt::Debug;

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

/// No row at all means no group, hence nothing to take the value from.
fn first_or_null(column: &ArrayRef) -> Result<ScalarValue> {
    if column.is_empty() {
        return ScalarValue::try_new_null(column.data_type());
    }
    ScalarValue::try_from_array(column, 0)
}
