//! Our SQL functions: the list of them, and one file for each family.
//!
//! Every aggregate is vectorised over groups, mergeable (so that windows and partitions can be combined), deterministic
//! in the multiset of its input rows up to rounding, and passes over NULL and non-finite values.

pub mod args;
pub mod by_time;
pub mod ewma;
pub mod filling;
pub mod hdr_quantile;
pub mod histogram;
pub mod one_group;
pub mod points;
pub mod sketch;
pub mod summary;
pub mod time_bucket;
pub mod topk;
pub mod trend;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};

pub use hdr_quantile::hdr_quantile_of;

use summary::Aggregate;

/// Returns the aggregate functions.
pub fn udafs() -> Vec<Arc<AggregateUDF>> {
    use points::Call;
    let all = vec![
        AggregateUDF::new_from_impl(hdr_quantile::HdrAggregate::new(hdr_quantile::Call::Quantile)),
        AggregateUDF::new_from_impl(hdr_quantile::HdrAggregate::new(hdr_quantile::Call::Sketch)),
        AggregateUDF::new_from_impl(hdr_quantile::HdrAggregate::new(hdr_quantile::Call::Merge)),
        AggregateUDF::new_from_impl(trend::Trend::new(trend::Call::Slope)),
        AggregateUDF::new_from_impl(trend::Trend::new(trend::Call::Direction)),
        AggregateUDF::new_from_impl(by_time::ByTime::new(by_time::End::First)),
        AggregateUDF::new_from_impl(by_time::ByTime::new(by_time::End::Last)),
        AggregateUDF::new_from_impl(Aggregate::new(Call::Increase)),
        AggregateUDF::new_from_impl(Aggregate::new(Call::Rate)),
        AggregateUDF::new_from_impl(Aggregate::new(Call::Delta)),
        AggregateUDF::new_from_impl(Aggregate::new(Call::TimeWeight)),
        AggregateUDF::new_from_impl(Aggregate::new(ewma::Ewma)),
        AggregateUDF::new_from_impl(Aggregate::new(histogram::Histogram)),
        AggregateUDF::new_from_impl(Aggregate::new(topk::TopK)),
    ];
    all.into_iter().map(Arc::new).collect()
}

/// Returns the scalar functions.
pub fn udfs() -> Vec<Arc<ScalarUDF>> {
    let all = vec![
        ScalarUDF::new_from_impl(hdr_quantile::SketchQuantile::default()),
        ScalarUDF::new_from_impl(time_bucket::TimeBucket::default()),
    ];
    all.into_iter().map(Arc::new).collect()
}

/// Returns the window functions.
pub fn udwfs() -> Vec<Arc<WindowUDF>> {
    let all = [filling::Call::Locf, filling::Call::Interpolate];
    all.into_iter().map(|call| Arc::new(WindowUDF::new_from_impl(filling::Filling::new(call)))).collect()
}
