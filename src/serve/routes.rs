//! Routes: which path answers what, and the small pages that need no room of their own.

use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, Path, Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use tokio::sync::watch;
use tonic::Status;
use tracing::debug;

use super::connection::Activity;
use super::failure::Failure;
use super::flight::{self, Flight};
use super::{Api, Limits, Readiness, accept, sql};
use crate::query::User;
use crate::telemetry::Exposition;

/// What there is to ask for, as shown where a path is not found.
const ENDPOINTS: [&str; 11] = [
    "GET /",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /views",
    "GET /views/{name}",
    "GET /sql",
    "POST /sql",
    "DELETE /queries/{id}",
    "POST /-/reload",
    "POST /arrow.flight.protocol.FlightService/{method}",
];

/// Every path, for the label of the request counter; another path counts as `other`.
const PATHS: [&str; 7] = ["/", HEALTHZ, READYZ, "/metrics", "/sql", "/views", "/-/reload"];

/// Asked by machines that start and stop the program; they say nothing that is not for everyone.
const HEALTHZ: &str = "/healthz";
const READYZ: &str = "/readyz";

/// Formats of the scrape page, the one for clients without a wish first.
const EXPOSITIONS: [Exposition; 2] = [Exposition::Text, Exposition::OpenMetrics];

const INDEX: &str = include_str!("index.html");

/// What every handler sees.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) api: Api,
    pub(super) limits: Limits,
    /// Turns true when requests that still run must end.
    cut: watch::Receiver<bool>,
}

pub(super) fn router(api: Api, limits: Limits, cut: watch::Receiver<bool>) -> Router {
    let flight = Flight::service(api.query.clone(), api.accounts.clone());
    let context = Context { api, limits, cut };
    Router::new()
        .route("/", get(index))
        .route(HEALTHZ, get(healthz))
        .route(READYZ, get(readyz))
        .route("/metrics", get(metrics))
        .route("/views", get(views))
        .route("/views/{name}", get(view))
        .route("/sql", get(sql::get).post(sql::post))
        .route("/queries/{id}", delete(kill))
        .route("/-/reload", post(reload))
        .route_service(&format!("{}{{method}}", flight::PATH), flight)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(limits.body_bytes_max))
        .layer(middleware::from_fn_with_state(context.clone(), around))
        .with_state(context)
}

/// Wraps every request: finds out who sent it, tells the connection that it is our turn, ends the request at the cut-off,
/// counts it.
async fn around(
    State(context): State<Context>,
    ConnectInfo(activity): ConnectInfo<Activity>,
    mut request: Request,
    next: Next,
) -> Response {
    let uri = request.uri().clone();
    let is_flight = uri.path().starts_with(flight::PATH);
    // A call of gRPC may wait for what its client has to say; as long as rows go out, it says so itself.
    let _answering = (!is_flight).then(|| activity.answering());
    let path = PATHS.into_iter().find(|known| *known == uri.path());
    let path = path.unwrap_or(if is_flight { "flight" } else { "other" });
    let mut response = match context.api.accounts.of_request(request.headers()).await {
        Err(refused) if ![HEALTHZ, READYZ].contains(&path) => {
            debug!(client = %activity.peer, path = uri.path(), %refused, "refused to let somebody in");
            match is_flight {
                true => Status::unauthenticated(refused.to_string()).into_http(),
                false => Failure::unknown(refused.to_string()).into_response(),
            }
        }
        user => {
            if let Ok(user) = user {
                request.extensions_mut().insert(user);
            }
            let mut cut = context.cut.clone();
            tokio::select! {
                response = next.run(request) => response,
                _ = cut.wait_for(|&cut| cut) => Failure::busy("the server is shutting down").into_response(),
            }
        }
    };
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    context.api.telemetry.http.answered(path, response.status().as_u16());
    response
}

async fn index(State(context): State<Context>) -> Response {
    let readiness = (context.api.ready)();
    let page = INDEX
        .replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{state}}", if readiness.ready { "ready" } else { "not ready" })
        .replace("{{class}}", if readiness.ready { "ready" } else { "waiting" })
        .replace("{{reasons}}", &readiness.reasons.iter().map(|reason| list_item(reason)).collect::<String>());
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"),
    ];
    (headers, page).into_response()
}

/// The process answers; whether it does its work is for [`readyz`] to say.
async fn healthz() -> Response {
    Json(serde_json::json!({"status": "ok"})).into_response()
}

async fn readyz(State(context): State<Context>) -> (StatusCode, Json<Readiness>) {
    let readiness = (context.api.ready)();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(context): State<Context>, headers: HeaderMap) -> Response {
    // A scraper that wants neither gets the plain format all the same: Prometheus sends such headers by accident, and
    // a page it may not like beats an outage of its graphs.
    let exposition = accept::best(&headers, &EXPOSITIONS, |offer| offer.content_type()).unwrap_or(&Exposition::Text);
    let page = context.api.telemetry.render_as(*exposition);
    ([(CONTENT_TYPE, exposition.content_type())], page).into_response()
}

async fn views(State(context): State<Context>) -> Response {
    Json((context.api.views)()).into_response()
}

async fn view(State(context): State<Context>, Path(name): Path<String>) -> Result<Response, Failure> {
    let views = (context.api.views)();
    let found = views.as_array().and_then(|views| views.iter().find(|view| view["view"] == *name));
    match found {
        Some(view) => Ok(Json(view).into_response()),
        None => {
            Err(Failure::user(StatusCode::NOT_FOUND, format!("no view {}", shown(&name))).hint("GET /views lists them"))
        }
    }
}

/// Ends a query that runs.
async fn kill(
    State(context): State<Context>,
    Extension(user): Extension<Arc<User>>,
    Path(id): Path<u64>,
) -> Result<StatusCode, Failure> {
    match context.api.query.running().kill(id, &user) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Failure::user(StatusCode::NOT_FOUND, format!("no query {id} of yours runs"))
            .hint("SELECT id, sql FROM system.queries lists them")),
    }
}

/// Answers once the new configuration is in force.
async fn reload(State(context): State<Context>, Extension(user): Extension<Arc<User>>) -> Result<Response, Failure> {
    if !user.is_admin {
        return Err(Failure::user(StatusCode::FORBIDDEN, format!("{:?} is no admin", user.name)));
    }
    let Some(reload) = &context.api.reload else {
        return Err(Failure::user(
            StatusCode::CONFLICT,
            "this process was started without a configuration to read again",
        ));
    };
    match reload().await {
        Ok(report) => Ok(Json(report).into_response()),
        Err(why) => Err(Failure::user(StatusCode::BAD_REQUEST, why).hint("nothing was changed")),
    }
}

async fn not_found(uri: Uri) -> Failure {
    Failure::user(StatusCode::NOT_FOUND, format!("no endpoint {}", shown(uri.path()))).endpoints(&ENDPOINTS)
}

/// The router adds the `allow` header by itself.
async fn method_not_allowed(method: Method, uri: Uri) -> Failure {
    let message = format!("{} does not answer {method}", uri.path());
    Failure::user(StatusCode::METHOD_NOT_ALLOWED, message).endpoints(&ENDPOINTS)
}

/// Returns a path as it may stand in a message: a long one is cut.
fn shown(path: &str) -> &str {
    path.get(..path.floor_char_boundary(200)).unwrap_or(path)
}

fn list_item(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<li>{text}</li>")
}
