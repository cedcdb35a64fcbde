//! Alert states and scaling plans, as pure functions.
