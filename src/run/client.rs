//! A few lines of HTTP, enough to ask our own service one question. Not for any other server.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result};
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Gets a path of the service at `base`.
pub fn get(base: &Url, path: &str) -> Result<Vec<u8>> {
    ask(base, &format!("GET {path}"), "")
}

/// Posts a statement to `/sql` of the service at `base` and returns the body of the answer.
pub fn post_sql(base: &Url, format: &str, sql: &str) -> Result<Vec<u8>> {
    ask(base, &format!("POST /sql?format={format}"), sql)
}

/// HTTP/1.0, so that the body ends where the connection does.
fn ask(base: &Url, request: &str, body: &str) -> Result<Vec<u8>> {
    anyhow::ensure!(base.scheme() == "http", "expected an http:// URL, got {base}");
    let host = base.host_str().context("the URL names no host")?;
    let port = base.port_or_known_default().context("the URL names no port")?;
    let unreachable = || format!("no service answers at {base} (hint: start it, or use --data for its folder)");
    let address = (host, port).to_socket_addrs().with_context(unreachable)?.next().with_context(unreachable)?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).with_context(unreachable)?;
    write!(
        stream,
        "{request} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the answer was cut off")?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the answer is no HTTP")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{}", refusal(status, &body));
    Ok(body)
}

fn refusal(status: &str, body: &[u8]) -> String {
    let parsed: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = |name: &str| parsed.get("error")?.get(name)?.as_str().map(str::to_owned);
    match (said("message"), said("hint")) {
        (Some(message), Some(hint)) => format!("{message} (hint: {hint})"),
        (Some(message), None) => message,
        _ => format!("the service answered {status}"),
    }
}
