//! SQL over everything: the session, its functions, its limits, and the forms an answer is written in.
//!
//! Read-only. Knows tables only as `TableProvider`s handed in; knows nothing of how they are stored or filled.

mod catalog;
mod corrected;
pub mod engine;
pub mod error;
pub mod format;
pub mod functions;
pub mod labels;
mod planner;
pub mod statement;

pub use catalog::{Pin, Pinned, SystemTable};
pub use corrected::{CORRECTED, EMITTED, REVISION, WITHDRAWN};
pub use engine::{Answer, Engine, Settings};
pub use error::QueryError;

use datafusion::prelude::SessionContext;

/// Registers our functions on a context: that of a query, of a continuous query, or of an alert rule.
pub fn register_functions(context: &SessionContext) {
    for function in functions::udafs() {
        context.register_udaf(function.as_ref().clone());
    }
    for function in functions::udfs() {
        context.register_udf(function.as_ref().clone());
    }
    for function in functions::udwfs() {
        context.register_udwf(function.as_ref().clone());
    }
}
