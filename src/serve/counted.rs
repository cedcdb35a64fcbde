//! Queries as our own metrics count them, whatever way they came.

use crate::query::error::Class;
use crate::query::running::{Change, Outcome};
use crate::query::{Engine, QueryError};
use crate::telemetry::Telemetry;
use crate::telemetry::instruments::{QueryOutcome, Stage};

/// Has the queries of an engine counted and timed.
pub(super) fn count(engine: &Engine, telemetry: Telemetry) {
    engine.running().watched_by(Box::new(move |change| match change {
        Change::Began => telemetry.sql.started(),
        Change::Ended { outcome, elapsed } => {
            telemetry.stages.observe(Stage::Query, elapsed);
            telemetry.sql.ended(match outcome {
                Outcome::Ok => QueryOutcome::Ok,
                Outcome::Abandoned | Outcome::Failed(QueryError::Killed) => QueryOutcome::Cancelled,
                Outcome::Failed(QueryError::Busy { .. } | QueryError::Timeout { .. }) => QueryOutcome::Busy,
                Outcome::Failed(error) => match error.class() {
                    Class::User => QueryOutcome::User,
                    Class::Limit => QueryOutcome::Limit,
                    Class::Internal => QueryOutcome::Internal,
                },
            });
        }
    }));
}
