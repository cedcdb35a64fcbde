//! Scaling decisions: an absolute target with its reasons, or a typed abstention.

use serde::{Deserialize, Serialize};

use super::id;
use super::time::EventTime;

/// Why the planner would not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Abstention {
    /// No row of the load view has ever been seen for the target.
    NoData,
    /// The newest row is older than the target allows.
    StaleData,
    /// Too few rows to judge by.
    ShortHistory,
    /// The load is not a finite number of at least zero.
    UnusableLoad,
}

impl Abstention {
    pub fn as_str(self) -> &'static str {
        match self {
            Abstention::NoData => "no_data",
            Abstention::StaleData => "stale_data",
            Abstention::ShortHistory => "short_history",
            Abstention::UnusableLoad => "unusable_load",
        }
    }
}

/// What a decision rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Load at the newest window, in the unit of the target's capacity.
    pub load: Option<f64>,
    /// End of the window that gave `load`.
    pub load_at: Option<EventTime>,
    /// The highest upper bound of the forecast within start-up time.
    pub forecast_upper: Option<f64>,
    /// When the forecast was issued.
    pub forecast_issued_at: Option<EventTime>,
    /// Capacity of one replica, in the same unit.
    pub capacity_per_replica: f64,
    /// Replicas asked for before this decision.
    pub previous_replicas: Option<u32>,
}

/// One row of `decisions`, and a record on the decisions topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Of (target, epoch, moment).
    pub id: String,
    pub target: String,
    /// Grows by one with every decision on this target; a consumer ignores what is not newer than what it has.
    pub epoch: u64,
    pub at: EventTime,
    /// The absolute number of replicas asked for; none where the planner abstains.
    pub desired_replicas: Option<u32>,
    pub abstention: Option<Abstention>,
    /// The decision in words.
    pub reason: String,
    /// How sure the planner is, in [0, 1].
    pub confidence: f64,
    /// What the desired replicas cost an hour, in the unit of the configuration.
    pub cost_per_hour: Option<f64>,
    pub evidence: Evidence,
}

impl Decision {
    pub fn id_of(target: &str, epoch: u64, at: EventTime) -> String {
        id::of_parts(["decision", target, &epoch.to_string(), &at.as_micros().to_string()])
    }
}
