//! The time-series store: Delta tables with source offsets in the same commit.
