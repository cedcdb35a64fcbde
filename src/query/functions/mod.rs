//! Our SQL functions: the list of them, and one file for each family.
//!
//! Every aggregate is vectorised over groups, mergeable (so that windows and partitions can be combined), deterministic
//! in the multiset of its input rows up to rounding, and passes over NULL and non-finite values.

pub mod args;
pub mod by_time;
pub mod hdr_quantile;
pub mod one_group;
pub mod sketch;
pub mod trend;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

pub use hdr_quantile::sketch_quantile;

/// Returns the aggregate functions.
pub fn udafs() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::new_from_impl(hdr_quantile::HdrAggregate::new(hdr_quantile::Call::Quantile))),
        Arc::new(AggregateUDF::new_from_impl(hdr_quantile::HdrAggregate::new(hdr_quantile::Call::Sketch))),
        Arc::new(AggregateUDF::new_from_impl(hdr_quantile::HdrAggregate::new(hdr_quantile::Call::Merge))),
        Arc::new(AggregateUDF::new_from_impl(trend::Trend::new(trend::Call::Slope))),
        Arc::new(AggregateUDF::new_from_impl(trend::Trend::new(trend::Call::Direction))),
        Arc::new(AggregateUDF::new_from_impl(by_time::ByTime::new(by_time::End::First))),
        Arc::new(AggregateUDF::new_from_impl(by_time::ByTime::new(by_time::End::Last))),
    ]
}

/// Returns the scalar functions.
pub fn udfs() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(ScalarUDF::new_from_impl(hdr_quantile::SketchQuantile::default()))]
}
