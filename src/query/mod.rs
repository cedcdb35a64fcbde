//! SQL over everything: the session, its functions, its limits, and the forms an answer is written in.
//!
//! Read-only. Knows tables only as `TableProvider`s handed in; knows nothing of how they are stored or filled.

pub mod access;
mod catalog;
mod corrected;
pub mod engine;
pub mod error;
pub mod format;
pub mod functions;
pub mod labels;
pub mod parameters;
mod planner;
pub mod postgres;
pub mod running;
pub mod statement;

pub use access::{Grant, User};
pub use catalog::{Pin, Pinned, SystemTable};
pub use corrected::{CORRECTED, EMITTED, REVISION, WITHDRAWN};
pub use engine::{Answer, Described, Engine, Question, Settings};
pub use error::QueryError;
pub use parameters::Types;
pub use running::{Asker, Surface};

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
