//! What can go wrong between us and Kafka: whose fault it is, and whether to try again. Prints no secret.

use std::time::Duration;

use rdkafka::error::{KafkaError as Rd, RDKafkaErrorCode as Code};

/// A failure of the Kafka room.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    #[error("kafka setting `{key}`: expected {expected}")]
    Setting { key: String, expected: String },
    #[error("failed to create the kafka {role}; the properties under `client` are handed to librdkafka as they are")]
    Client { role: &'static str, source: Rd },
    #[error("failed to start the thread {name}")]
    Thread { name: &'static str, source: std::io::Error },
    #[error("no broker of `{brokers}` answered: {reason}; {hint}")]
    Unreachable { brokers: String, reason: String, hint: &'static str },
    #[error("{reason}; {hint}")]
    Denied { reason: String, hint: &'static str },
    #[error("failed to {operation}")]
    Request { operation: String, source: Rd },
    #[error("failed to {operation}: {reason}")]
    Refused { operation: String, reason: String },
    #[error("topic {topic} does not exist; create it, or let the broker create topics on first use")]
    TopicMissing { topic: String },
    #[error(
        "{topic}[{partition}]: expected to continue at offset {position}, but the log holds [{low}, {high}): {}",
        lost(*position, *low, *high)
    )]
    OutOfRange { topic: String, partition: i32, position: i64, low: i64, high: i64 },
    #[error("{topic}[{partition}] at offset {offset}: {reason}")]
    Fetch { topic: String, partition: i32, offset: i64, reason: String },
    #[error("the kafka {role} cannot go on: {reason}")]
    Fatal { role: &'static str, reason: String },
    #[error("the receiver of the source dropped the reply to `{event}` instead of answering it")]
    Unanswered { event: &'static str },
    #[error("the receiver of the source answered {got}, expected {expected}")]
    Answer { expected: String, got: String },
    #[error("failed to {operation}: another producer took over the transactional id; stop one of the two")]
    Fenced { operation: &'static str, source: Rd },
    #[error("failed to {operation}: the consumer group moved on, the partitions belong to another member now")]
    LostGroup { operation: &'static str, source: Rd },
    #[error("failed to {operation}")]
    Transaction { operation: &'static str, retriable: bool, source: Rd },
    #[error("{failed} record(s) were not delivered, the first of them to {topic}")]
    Delivery { failed: u64, topic: String, source: Rd },
    #[error("timed out after {after:?} in: {operation}")]
    Timeout { operation: String, after: Duration },
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A setting, a permission, or a missing topic: a person has to mend it.
    User,
    /// The broker or the network.
    External,
    /// A broken promise inside this program.
    Internal,
}

impl KafkaError {
    /// Tells whose fault the failure is.
    pub fn fault(&self) -> Fault {
        use KafkaError as E;
        match self {
            E::Setting { .. } | E::Client { .. } | E::Denied { .. } | E::TopicMissing { .. } | E::Fenced { .. } => {
                Fault::User
            }
            E::Thread { .. } | E::Unanswered { .. } | E::Answer { .. } => Fault::Internal,
            E::Request { source, .. } | E::Transaction { source, .. } | E::Delivery { source, .. } => {
                if is_denial(code(source)) || is_record_fault(code(source)) { Fault::User } else { Fault::External }
            }
            E::Unreachable { .. }
            | E::Refused { .. }
            | E::OutOfRange { .. }
            | E::Fetch { .. }
            | E::Fatal { .. }
            | E::LostGroup { .. }
            | E::Timeout { .. } => Fault::External,
        }
    }

    /// Tells whether the same call may succeed later with nothing changed but time.
    pub fn is_retriable(&self) -> bool {
        use KafkaError as E;
        match self {
            E::Unreachable { .. } | E::Timeout { .. } => true,
            E::Transaction { retriable, .. } => *retriable,
            E::Request { source, .. } | E::Delivery { source, .. } => {
                !is_denial(code(source)) && !is_record_fault(code(source))
            }
            _ => false,
        }
    }

    /// Tells whether another producer with the same transactional id has taken over: this one must stop.
    pub fn is_fenced(&self) -> bool {
        matches!(self, KafkaError::Fenced { .. })
    }

    /// Tells whether the offsets belonged to partitions that this group member no longer owns: nothing was written,
    /// and the new owner will do the work.
    pub fn is_lost_group(&self) -> bool {
        matches!(self, KafkaError::LostGroup { .. })
    }

    pub(super) fn request(operation: impl Into<String>) -> impl FnOnce(Rd) -> KafkaError {
        let operation = operation.into();
        move |source| KafkaError::Request { operation, source }
    }

    /// Sorts a failed transactional call by what its caller has to do next.
    pub(super) fn transaction(operation: &'static str, source: Rd) -> KafkaError {
        match code(&source) {
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => {
                KafkaError::Fenced { operation, source }
            }
            Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::FencedInstanceId
            | Code::FencedMemberEpoch
            | Code::StaleMemberEpoch => KafkaError::LostGroup { operation, source },
            other => {
                // Even what is fatal to a producer: the sink makes a new one for the next try.
                let retriable = !is_denial(other) && !is_record_fault(other);
                KafkaError::Transaction { operation, retriable, source }
            }
        }
    }
}

/// Returns librdkafka's code of an error, `Unknown` where it carries none.
pub(super) fn code(error: &Rd) -> Code {
    error.rdkafka_error_code().unwrap_or(Code::Unknown)
}

/// Tells whether the broker refused us, rather than failed.
pub(super) fn is_denial(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::PolicyViolation
    )
}

/// Returns what a person could look at, told by librdkafka's code.
pub(super) fn hint(code: Code) -> &'static str {
    match code {
        Code::Resolve => "the host name does not resolve: check `brokers` and the name server",
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "check `sasl.mechanism`, `sasl.username` and `sasl.password` under `client`"
        }
        Code::UnsupportedSASLMechanism | Code::IllegalSASLState => "check `sasl.mechanism` under `client`",
        Code::SSL => "check `security.protocol` and the `ssl.*` properties under `client`",
        Code::TopicAuthorizationFailed => "the principal needs READ on input and WRITE on output topics",
        Code::GroupAuthorizationFailed => "the principal needs READ on the consumer group",
        Code::ClusterAuthorizationFailed => "the principal needs IDEMPOTENT_WRITE or CREATE on the cluster",
        Code::TransactionalIdAuthorizationFailed => "the principal needs WRITE on the transactional id",
        Code::PolicyViolation => "the cluster's policy forbids it",
        _ => "check that the broker runs, that `brokers` names its advertised listener, and `security.protocol`",
    }
}

/// Tells whether the record or its topic is at fault, so that sending it again cannot help.
fn is_record_fault(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTopic
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::OffsetMetadataTooLarge
            | Code::InvalidTimestamp
            | Code::InvalidArgument
    )
}

fn lost(position: i64, low: i64, high: i64) -> String {
    if position < low {
        format!(
            "the records [{position}, {low}) are gone, retention has passed them; to go on without them, \
             start with kafka.deleted_unread = \"skip\""
        )
    } else {
        format!("the log ends before {position}; was the topic deleted and made again, or the log truncated at {high}?")
    }
}
