//! SQL over HTTP: from a request to a statement and a format, and from an answer to bytes of that format.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::timeout;
use tracing::{debug, error};
use url::form_urlencoded;

use super::accept;
use super::connection::Activity;
use super::failure::{Class, Failure};
use super::routes::Context;
use crate::query::format::{self, Format};
use crate::query::{Asker, Engine, Surface, User};

/// Formats on offer, the one for clients without a wish first.
const OFFERS: [Format; 6] = [Format::Json, Format::NdJson, Format::Csv, Format::Arrow, Format::Parquet, Format::Table];

/// What was asked, from wherever in the request it stood. Also the shape of a JSON body.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    query: Option<String>,
    format: Option<String>,
}

/// `GET /sql?query=…&format=…`
pub(super) async fn get(
    State(context): State<Context>,
    Caller(asker): Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    answer(&context, &asker, Asked::of_form(uri.query().unwrap_or_default().as_bytes())?, &headers).await
}

/// `POST /sql?format=…` with the statement as body: plain text, a JSON object or a form.
pub(super) async fn post(
    State(context): State<Context>,
    Caller(asker): Caller,
    request: Request,
) -> Result<Response, Failure> {
    let in_uri = Asked::of_form(request.uri().query().unwrap_or_default().as_bytes())?;
    let headers = request.headers().clone();
    let body_kind = BodyKind::of(&headers)?;
    let body = read_body(request, &context).await?;
    let asked = body_kind.parse(&body)?.or(in_uri)?;
    answer(&context, &asker, asked, &headers).await
}

/// Who sent a request, as the engine knows them.
pub(super) struct Caller(Asker);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Failure> {
        let user = parts.extensions.get::<Arc<User>>().cloned();
        let user = user.ok_or_else(|| Failure::unknown("expected to know who asks"))?;
        let client = parts.extensions.get::<ConnectInfo<Activity>>().map(|ConnectInfo(activity)| activity.peer);
        Ok(Caller(Asker { user, surface: Surface::Http, client, session: None }))
    }
}

async fn answer(context: &Context, asker: &Asker, asked: Asked, headers: &HeaderMap) -> Result<Response, Failure> {
    let format = match &asked.format {
        Some(name) => name.parse().map_err(|message: String| Failure::user(StatusCode::BAD_REQUEST, message))?,
        None => *accept::best(headers, &OFFERS, |offer| offer.content_type()).ok_or_else(not_acceptable)?,
    };
    let statement = asked.query.filter(|query| !query.trim().is_empty()).ok_or_else(no_statement)?;
    match run(&context.api.query, asker, &statement, format).await {
        Ok(bytes) => Ok(([(CONTENT_TYPE, format.content_type())], bytes).into_response()),
        Err(failure) if failure.class() == Class::Internal => {
            error!(message = failure.message(), "query failed by our fault");
            Err(failure)
        }
        Err(failure) => {
            debug!(message = failure.message(), "query refused");
            Err(failure)
        }
    }
}

/// Runs a statement to its end, within the engine's limits, and returns its rows in the format.
///
/// The answer is held whole before a byte of it goes out, so that an error in its last row is still an error status.
async fn run(engine: &Engine, asker: &Asker, statement: &str, format: Format) -> Result<Vec<u8>, Failure> {
    let answer = engine.ask(asker, statement.into()).await?;
    let schema = answer.schema.clone();
    let batches = answer.collect().await?;
    // Encoding is pure computation and may take long: not on a thread that serves connections.
    let encode = move || {
        let mut bytes = Vec::new();
        format::write(format, &schema, &batches, &mut bytes).map(|()| bytes)
    };
    let encoded = tokio::task::spawn_blocking(encode).await;
    Ok(encoded.map_err(|panicked| Failure::internal(format!("failed to encode the answer: {panicked}")))??)
}

async fn read_body(request: Request, context: &Context) -> Result<Bytes, Failure> {
    let limits = context.limits;
    match timeout(limits.body_time_max, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("expected a body of at most {} bytes", limits.body_bytes_max);
            Err(Failure::user(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Ok(Err(rejection)) => Err(Failure::user(rejection.status(), rejection.body_text())),
        Err(_) => {
            let message = format!("the body did not arrive within {:?}", limits.body_time_max);
            Err(Failure::user(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// What a body is, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyKind {
    Text,
    Json,
    /// A form, or, as `curl --data` labels everything so, plain text.
    Form,
}

impl BodyKind {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(BodyKind::Text) };
        let value = value.to_str().unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "text/plain" | "application/sql" | "application/x-sql" | "text/x-sql" => Ok(BodyKind::Text),
            "application/json" => Ok(BodyKind::Json),
            "application/x-www-form-urlencoded" => Ok(BodyKind::Form),
            _ => {
                let message = format!("expected text/plain, application/sql or application/json, got {essence:?}");
                Err(Failure::user(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
            }
        }
    }

    fn parse(self, body: &[u8]) -> Result<Asked, Failure> {
        match self {
            BodyKind::Json => serde_json::from_slice(body).map_err(|error| {
                Failure::user(StatusCode::BAD_REQUEST, format!("failed to read the JSON body: {error}"))
                    .hint("expected {\"query\": \"SELECT ...\"}, with \"format\" where wished")
            }),
            // No statement begins like a form's field, so what does is one.
            BodyKind::Form if body.starts_with(b"query=") || body.starts_with(b"format=") => Asked::of_form(body),
            BodyKind::Form | BodyKind::Text => {
                let text = std::str::from_utf8(body).map_err(|error| {
                    let message = format!("expected UTF-8 text, got other bytes at offset {}", error.valid_up_to());
                    Failure::user(StatusCode::BAD_REQUEST, message)
                })?;
                Ok(Asked { query: Some(text.to_owned()).filter(|text| !text.trim().is_empty()), format: None })
            }
        }
    }
}

impl Asked {
    /// Reads fields as in a query string; a name that is not ours is refused, since a misspelt one would be lost.
    fn of_form(fields: &[u8]) -> Result<Self, Failure> {
        let mut asked = Asked::default();
        for (name, value) in form_urlencoded::parse(fields) {
            let place = match &*name {
                "query" => &mut asked.query,
                "format" => &mut asked.format,
                _ => {
                    let message = format!("expected the parameters query and format, got {name:?}");
                    return Err(Failure::user(StatusCode::BAD_REQUEST, message));
                }
            };
            if place.replace(value.into_owned()).is_some() {
                return Err(Failure::user(StatusCode::BAD_REQUEST, format!("the parameter {name} stands there twice")));
            }
        }
        Ok(asked)
    }

    /// Adds what stood elsewhere; the same thing in two places is refused rather than one of them ignored.
    fn or(self, other: Asked) -> Result<Self, Failure> {
        let one = |name: &str, here: Option<String>, there: Option<String>| match (here, there) {
            (Some(_), Some(_)) => {
                let message = format!("{name} stands both in the body and in the address");
                Err(Failure::user(StatusCode::BAD_REQUEST, message))
            }
            (here, there) => Ok(here.or(there)),
        };
        Ok(Asked { query: one("query", self.query, other.query)?, format: one("format", self.format, other.format)? })
    }
}

fn not_acceptable() -> Failure {
    let types = OFFERS.map(Format::content_type).join(", ");
    Failure::user(StatusCode::NOT_ACCEPTABLE, format!("expected to accept one of {types}"))
        .hint(format!("or add ?format= with one of {}", OFFERS.map(Format::as_str).join(", ")))
}

fn no_statement() -> Failure {
    Failure::user(StatusCode::BAD_REQUEST, "expected a SQL statement, got none")
        .hint("send it as the body: curl --data-binary 'SELECT 1' http://HOST/sql, or as ?query=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: Option<&str>, format: Option<&str>) -> Asked {
        Asked { query: query.map(str::to_owned), format: format.map(str::to_owned) }
    }

    fn kind(content_type: &str) -> Result<BodyKind, StatusCode> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        BodyKind::of(&headers).map_err(|failure| failure.status)
    }

    #[test]
    fn the_body_is_what_its_type_says() {
        assert_eq!(BodyKind::of(&HeaderMap::new()).ok(), Some(BodyKind::Text));
        assert_eq!(kind("Application/JSON; charset=utf-8"), Ok(BodyKind::Json));
        assert_eq!(kind("image/png"), Err(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }

    #[test]
    fn a_body_is_read_by_its_kind() {
        let cases = [
            (BodyKind::Text, "SELECT 1", asked(Some("SELECT 1"), None)),
            (BodyKind::Text, " \n", asked(None, None)),
            (BodyKind::Json, r#"{"query": "SELECT 1", "format": "csv"}"#, asked(Some("SELECT 1"), Some("csv"))),
            (BodyKind::Form, "query=SELECT+1%2B1&format=csv", asked(Some("SELECT 1+1"), Some("csv"))),
            (BodyKind::Form, "SELECT 1+1", asked(Some("SELECT 1+1"), None)),
        ];
        for (kind, body, expected) in cases {
            assert_eq!(kind.parse(body.as_bytes()).ok(), Some(expected), "{kind:?} {body}");
        }
        for (kind, body) in [
            (BodyKind::Json, &b"SELECT 1"[..]),
            (BodyKind::Json, br#"{"sql": "SELECT 1"}"#),
            (BodyKind::Text, b"\xff"),
            (BodyKind::Form, b"query=1&query=2"),
            (BodyKind::Form, b"query=1&fromat=csv"),
        ] {
            let status = kind.parse(body).map_err(|failure| failure.status);
            assert_eq!(status, Err(StatusCode::BAD_REQUEST), "{kind:?} {body:?}");
        }
    }

    #[test]
    fn the_same_thing_in_two_places_is_refused() {
        let both = asked(Some("1"), None).or(asked(None, Some("csv")));
        assert_eq!(both.ok(), Some(asked(Some("1"), Some("csv"))));
        assert!(asked(Some("1"), None).or(asked(Some("2"), None)).is_err());
    }
}
