//! Tests over real sockets: a server on a free port, and a small HTTP client written by hand, so that broken and slow
//! clients can be played too.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::accounts::Accounts;
use super::{Api, Bound, Limits, Readiness, ServeError, Settings};
use crate::query::{self, Engine};
use crate::telemetry::Telemetry;

/// No step of a test may take longer; far above what any takes.
const DEADLINE: Duration = Duration::from_secs(30);

const ROWS_MAX: usize = 3;

const STATEMENT_BYTES_MAX: usize = 64 << 10;

/// A running server, stopped on wish.
struct Server {
    address: std::net::SocketAddr,
    telemetry: Telemetry,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), ServeError>>,
}

/// What differs from test to test.
struct Setup {
    limits: Limits,
    readiness: Readiness,
    /// Every query waits here until something is sent or the sender is gone.
    gate: Option<mpsc::Receiver<()>>,
}

impl Default for Setup {
    fn default() -> Self {
        let readiness = Readiness { ready: true, reasons: Vec::new() };
        Setup { limits: Limits::default(), readiness, gate: None }
    }
}

impl Server {
    async fn start(setup: Setup) -> Self {
        let telemetry = Telemetry::default();
        let readiness = setup.readiness;
        let query = Arc::new(engine(setup.gate));
        let api = Api {
            reload: None,
            accounts: Accounts::everyone(query.everyone()).unwrap(),
            query,
            telemetry: telemetry.clone(),
            ready: Arc::new(move || readiness.clone()),
            views: Arc::new(|| serde_json::json!([{"view": "calm", "state": "has emitted nothing"}])),
        };
        let mut bound = Bound::bind(&settings()).await.unwrap();
        bound.limits = setup.limits;
        let address = bound.address();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(bound.serve(api, async move { drop(stopped.await) }));
        Server { address, telemetry, stop, served }
    }

    async fn connect(&self) -> TcpStream {
        timeout(DEADLINE, TcpStream::connect(self.address)).await.unwrap().unwrap()
    }

    async fn send(&self, request: &str) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        Reply::read(&mut stream).await
    }

    async fn get(&self, target: &str, headers: &str) -> Reply {
        self.send(&format!("GET {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n")).await
    }

    async fn post(&self, target: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        let head = format!("POST {target} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n");
        self.send(&format!("{head}{headers}\r\n{body}")).await
    }

    /// Waits until the page of metrics holds the line.
    async fn await_metric(&self, line: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.telemetry.render().lines().any(|on_page| on_page == line) {
            assert!(Instant::now() < deadline, "no {line} in {}", self.telemetry.render());
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(DEADLINE, self.served).await.unwrap().unwrap().unwrap();
    }
}

fn settings() -> Settings {
    Settings { listen: ([127, 0, 0, 1], 0).into(), postgres: None, tls: None }
}

fn engine(gate: Option<mpsc::Receiver<()>>) -> Engine {
    let settings = query::Settings {
        memory_bytes_max: 64 << 20,
        rows_max: ROWS_MAX,
        timeout: DEADLINE,
        concurrency_max: 4,
        statement_bytes_max: STATEMENT_BYTES_MAX,
    };
    let gate = gate.map(Mutex::new);
    let pin: query::Pin = Arc::new(move || {
        if let Some(gate) = &gate {
            let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        }
        Vec::new().into()
    });
    Engine::new(settings, pin, Vec::new()).unwrap()
}

/// An answer, read to the end of its connection.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
        Reply::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned()));
        Reply { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Returns the class of the error and asserts its status and shape.
    #[track_caller]
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/json");
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        error["class"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn the_index_shows_the_endpoints_and_escapes_reasons() {
    let readiness = Readiness { ready: false, reasons: vec!["broker <script>".to_owned()] };
    let server = Server::start(Setup { readiness, ..Setup::default() }).await;
    let reply = server.get("/", "").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(reply.text().contains("/metrics") && reply.text().contains("not ready"));
    assert!(reply.text().contains("broker &lt;script&gt;") && !reply.text().contains("{{"));
    server.stop().await;
}

#[tokio::test]
async fn health_is_independent_of_readiness() {
    let readiness = Readiness { ready: false, reasons: vec!["no broker answers at kafka:9092".to_owned()] };
    let server = Server::start(Setup { readiness, ..Setup::default() }).await;
    assert_eq!(server.get("/healthz", "").await.status, 200);
    let reply = server.get("/readyz", "").await;
    assert_eq!(reply.status, 503);
    let expected = serde_json::json!({"ready": false, "reasons": ["no broker answers at kafka:9092"]});
    assert_eq!(reply.json(), expected);
    server.stop().await;

    let server = Server::start(Setup::default()).await;
    let reply = server.get("/readyz", "").await;
    assert_eq!((reply.status, reply.json()["ready"].as_bool()), (200, Some(true)));
    server.stop().await;
}

#[tokio::test]
async fn the_scrape_page_comes_in_the_format_asked_for() {
    let server = Server::start(Setup::default()).await;
    let prometheus = "accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4\r\n";
    let reply = server.get("/metrics", prometheus).await;
    assert_eq!(reply.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(reply.text().ends_with("# EOF\n"));
    for accept in ["", "accept: */*\r\n", "accept: image/png\r\n"] {
        let reply = server.get("/metrics", accept).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(!reply.text().contains("# EOF"));
    }
    let reply = server.get("/metrics", "").await;
    assert!(reply.text().contains("bellwether_http_requests_total{path=\"/metrics\",code=\"200\"} 4\n"));
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_what_is() {
    let server = Server::start(Setup::default()).await;
    let reply = server.get("/nothing", "").await;
    assert_eq!(reply.error(404), "user");
    let endpoints = reply.json()["error"]["endpoints"].clone();
    assert!(endpoints.as_array().unwrap().contains(&Value::from("POST /sql")), "{endpoints}");

    let reply = server.post("/metrics", "", "").await;
    assert_eq!(reply.error(405), "user");
    assert_eq!(reply.header("allow"), "GET,HEAD");
    server.await_metric("bellwether_http_requests_total{path=\"other\",code=\"404\"} 1").await;
    server.stop().await;
}

#[tokio::test]
async fn sql_answers_wherever_the_statement_stands() {
    let server = Server::start(Setup::default()).await;
    let json = "content-type: application/json\r\n";
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    for reply in [
        server.post("/sql", "", "SELECT 1 AS one").await,
        server.post("/sql", json, r#"{"query": "SELECT 1 AS one"}"#).await,
        server.post("/sql", form, "SELECT 1 AS one").await,
        server.post("/sql?query=SELECT+1+AS+one", "", "").await,
        server.get("/sql?query=SELECT%201%20AS%20one", "").await,
    ] {
        assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{}", reply.text());
        assert_eq!(reply.json(), serde_json::json!([{"one": 1}]));
    }
    server.await_metric("bellwether_sql_queries_total{outcome=\"ok\"} 5").await;
    server.await_metric("bellwether_stage_duration_seconds_count{stage=\"query\"} 5").await;
    server.stop().await;
}

#[tokio::test]
async fn sql_answers_in_every_format() {
    let server = Server::start(Setup::default()).await;
    let cases: [(&str, &str, &str, &[u8]); 6] = [
        ("json", "application/json", "application/json", b"[{\"one\":1}]"),
        ("ndjson", "application/x-ndjson", "application/x-ndjson", b"{\"one\":1}"),
        ("csv", "text/csv", "text/csv; charset=utf-8; header=present", b"one\n1"),
        ("arrow", "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream", b"\xff\xff\xff\xff"),
        ("parquet", "application/vnd.apache.parquet", "application/vnd.apache.parquet", b"PAR1"),
        ("table", "text/plain", "text/plain; charset=utf-8", b""),
    ];
    for (name, accept, content_type, begin) in cases {
        let by_name = server.post(&format!("/sql?format={name}"), "", "SELECT 1 AS one").await;
        let by_header = server.post("/sql", &format!("accept: {accept}\r\n"), "SELECT 1 AS one").await;
        for reply in [by_name, by_header] {
            assert_eq!((reply.status, reply.header("content-type")), (200, content_type));
            assert!(reply.body.starts_with(begin), "{name}: {:?}", String::from_utf8_lossy(&reply.body));
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn each_way_to_ask_wrongly_has_its_answer() {
    let server = Server::start(Setup::default()).await;
    assert_eq!(server.post("/sql", "", "SELECT * FROM nowhere").await.error(400), "user");
    assert_eq!(server.post("/sql", "", "DROP TABLE metrics").await.error(400), "user");
    let long = format!("SELECT '{}'", "x".repeat(STATEMENT_BYTES_MAX));
    assert_eq!(server.post("/sql", "", &long).await.error(413), "limit");
    assert_eq!(server.post("/sql", "", "").await.error(400), "user");
    assert_eq!(server.get("/sql", "").await.error(400), "user");
    assert_eq!(server.post("/sql?format=xml", "", "SELECT 1").await.error(400), "user");
    assert_eq!(server.post("/sql?fromat=csv", "", "SELECT 1").await.error(400), "user");
    assert_eq!(server.post("/sql", "accept: image/png\r\n", "SELECT 1").await.error(406), "user");
    assert_eq!(server.post("/sql", "content-type: image/png\r\n", "SELECT 1").await.error(415), "user");
    let four_rows = "SELECT * FROM (VALUES (1), (2), (3), (4)) AS t (x)";
    assert_eq!(server.post("/sql", "", four_rows).await.error(422), "limit");
    server.await_metric("bellwether_sql_queries_total{outcome=\"user\"} 2").await;
    server.await_metric("bellwether_sql_queries_total{outcome=\"limit\"} 2").await;
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_or_too_slow_is_refused() {
    let limits = Limits { body_bytes_max: 100, body_time_max: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    assert_eq!(server.post("/sql", "", &"x".repeat(101)).await.error(413), "user");
    let half = "POST /sql HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 20\r\n\r\nSELECT";
    assert_eq!(server.send(half).await.error(408), "user");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_is_quiet_or_dribbles_is_cut_off() {
    let limits = Limits { quiet_max: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    let mut idle = server.connect().await;
    let mut dribbling = server.connect().await;
    dribbling.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    let dribble = async {
        // One byte at a time, until the server has had enough. Every byte is movement of the client's, none of ours.
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while dribbling.write_all(b"x").await.is_ok() {
            tick.tick().await;
        }
    };
    timeout(DEADLINE, dribble).await.expect("the server cuts a dribbling client off");
    let mut rest = Vec::new();
    timeout(DEADLINE, idle.read_to_end(&mut rest)).await.expect("the server cuts an idle client off").unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    server.stop().await;
}

#[tokio::test]
async fn a_query_may_take_longer_than_a_client_may_be_quiet() {
    let limits = Limits { quiet_max: Duration::from_millis(50), ..Limits::default() };
    let (open, gate) = mpsc::channel();
    let server = Server::start(Setup { limits, gate: Some(gate), ..Setup::default() }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /sql?query=SELECT+1+AS+one HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
    server.await_metric("bellwether_sql_queries_running 1").await;
    // Another connection that is cut off for being quiet shows that more than the time allowed has passed.
    let mut quiet = server.connect().await;
    timeout(DEADLINE, quiet.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    open.send(()).unwrap();
    assert_eq!(Reply::read(&mut stream).await.json(), serde_json::json!([{"one": 1}]));
    server.stop().await;
}

#[tokio::test]
async fn connections_above_the_limit_wait_their_turn() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() }).await;
    let mut first = server.connect().await;
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    server.await_metric("bellwether_http_requests_total{path=\"/healthz\",code=\"200\"} 1").await;
    let mut second = server.connect().await;
    second.write_all(b"GET /readyz HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
    // The first keeps its connection, so the second's request is not looked at, however long another round takes.
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    server.await_metric("bellwether_http_requests_total{path=\"/healthz\",code=\"200\"} 2").await;
    assert!(!server.telemetry.render().contains("path=\"/readyz\""));
    drop(first);
    assert_eq!(Reply::read(&mut second).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn who_goes_away_cancels_the_query() {
    let (open, gate) = mpsc::channel();
    let server = Server::start(Setup { gate: Some(gate), ..Setup::default() }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /sql?query=SELECT+1 HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    server.await_metric("bellwether_sql_queries_running 1").await;
    drop(stream);
    server.await_metric("bellwether_sql_queries_total{outcome=\"cancelled\"} 1").await;
    server.await_metric("bellwether_sql_queries_running 0").await;
    drop(open);
    server.stop().await;
}

#[tokio::test]
async fn shutdown_lets_a_running_request_end() {
    let (open, gate) = mpsc::channel();
    let server = Server::start(Setup { gate: Some(gate), ..Setup::default() }).await;
    let mut idle = server.connect().await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /sql?query=SELECT+1+AS+one HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    server.await_metric("bellwether_sql_queries_running 1").await;
    server.stop.send(()).unwrap();
    // The idle connection ends at once: this is how we know that the shutdown has begun.
    timeout(DEADLINE, idle.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    open.send(()).unwrap();
    let reply = Reply::read(&mut stream).await;
    assert_eq!((reply.status, reply.json()), (200, serde_json::json!([{"one": 1}])));
    timeout(DEADLINE, server.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn shutdown_cuts_off_what_outlasts_the_deadline() {
    let limits = Limits { drain_max: Duration::from_millis(50), ..Limits::default() };
    let (open, gate) = mpsc::channel();
    let server = Server::start(Setup { limits, gate: Some(gate), ..Setup::default() }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /sql?query=SELECT+1 HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    server.await_metric("bellwether_sql_queries_running 1").await;
    server.stop.send(()).unwrap();
    let reply = Reply::read(&mut stream).await;
    assert_eq!(reply.error(503), "busy");
    assert_eq!(reply.header("retry-after"), "1");
    timeout(DEADLINE, server.served).await.unwrap().unwrap().unwrap();
    drop(open);
}

#[tokio::test]
async fn a_taken_port_is_named_with_a_way_out() {
    let taken = Bound::bind(&settings()).await.unwrap();
    let error = Bound::bind(&Settings { listen: taken.address(), ..settings() }).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&taken.address().to_string()) && message.contains("serve.listen"), "{message}");
    assert!(std::error::Error::source(&error).is_some());
}
