//! What a client is told when something did not work: a status, and a JSON body that names class, message and hint.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::query::QueryError;
use crate::query::error::Class as Fault;

/// Whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Class {
    User,
    Limit,
    Busy,
    Internal,
}

/// An answer that is not the one asked for: `{"error": {"class", "message", "hint"}}`.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    body: Box<Body>,
    header: Option<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Serialize)]
struct Body {
    class: Class,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<&'static [&'static str]>,
}

impl Failure {
    /// Makes a failure that the client can mend.
    pub(super) fn user(status: StatusCode, message: impl Into<String>) -> Self {
        Failure::new(status, Class::User, message.into())
    }

    /// Makes a failure that will pass: the client may try again soon.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, Class::Busy, message.into()).retry_later()
    }

    /// Makes a failure of somebody who did not say who they are, or not rightly.
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        let schemes = HeaderValue::from_static("Basic realm=\"bellwether\", charset=\"UTF-8\"");
        Failure::user(StatusCode::UNAUTHORIZED, message)
            .hint("curl --user NAME:PASSWORD, or --oauth2-bearer TOKEN; the one who runs the service gives them out")
            .header(WWW_AUTHENTICATE, schemes)
    }

    /// Makes a failure of ours.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, Class::Internal, message.into())
    }

    pub(super) fn class(&self) -> Class {
        self.body.class
    }

    pub(super) fn message(&self) -> &str {
        &self.body.message
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    pub(super) fn endpoints(mut self, endpoints: &'static [&'static str]) -> Self {
        self.body.endpoints = Some(endpoints);
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    fn new(status: StatusCode, class: Class, message: String) -> Self {
        let body = Body { class, message, hint: None, endpoints: None };
        Failure { status, body: Box::new(body), header: None }
    }

    fn retry_later(self) -> Self {
        self.header(RETRY_AFTER, HeaderValue::from_static("1"))
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        let (status, class) = match (&error, error.class()) {
            (QueryError::Busy { .. } | QueryError::Timeout { .. }, _) => (StatusCode::SERVICE_UNAVAILABLE, Class::Busy),
            (QueryError::StatementBytes { .. }, _) => (StatusCode::PAYLOAD_TOO_LARGE, Class::Limit),
            (QueryError::Forbidden { .. }, _) => (StatusCode::FORBIDDEN, Class::User),
            // A statement that is well formed and fails on what it meets, such as a division by zero.
            (QueryError::Evaluate { .. }, _) => (StatusCode::UNPROCESSABLE_ENTITY, Class::User),
            (_, Fault::User) => (StatusCode::BAD_REQUEST, Class::User),
            (_, Fault::Limit) => (StatusCode::UNPROCESSABLE_ENTITY, Class::Limit),
            (_, Fault::Internal) => (StatusCode::INTERNAL_SERVER_ERROR, Class::Internal),
        };
        // The message says what to do about it as well.
        let failure = Failure::new(status, class, error.message());
        if class == Class::Busy { failure.retry_later() } else { failure }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Envelope {
            error: Box<Body>,
        }
        let mut response = (self.status, Json(Envelope { error: self.body })).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
