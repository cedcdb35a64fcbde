//! A few lines of HTTP, enough to ask our own service one question. Not for any other server.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds a token to come in with.
pub const TOKEN_VARIABLE: &str = "BELLWETHER_TOKEN";

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
    let host = base.host_str().context("the URL names no host")?;
    let port = base.port_or_known_default().context("the URL names no port")?;
    // Its name and password are for the service alone.
    let shown = format!("{}://{host}:{port}", base.scheme());
    let unreachable = || format!("no service answers at {shown} (hint: start it, or use --data for its folder)");
    let address = (host, port).to_socket_addrs().with_context(unreachable)?.next().with_context(unreachable)?;
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).with_context(unreachable)?;
    let mut stream: Box<dyn Stream> = match base.scheme() {
        "http" => Box::new(stream),
        "https" => Box::new(encrypted(stream, host).with_context(|| format!("no TLS with {shown}"))?),
        other => anyhow::bail!("expected an http:// or https:// URL, got {other}://"),
    };
    let credentials = credentials(base)?.map(|said| format!("Authorization: {said}\r\n")).unwrap_or_default();
    write!(
        stream,
        "{request} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: text/plain\r\n{credentials}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .with_context(|| format!("{shown} does not listen to the end"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the answer was cut off")?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the answer is no HTTP")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{}", refusal(status, &body));
    Ok(body)
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Trusts what the system trusts, or the file that `SSL_CERT_FILE` names.
fn encrypted(stream: TcpStream, host: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    anyhow::ensure!(
        !roots.is_empty(),
        "no certificate to trust was found (hint: name a file of them in SSL_CERT_FILE)"
    );
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), host.to_owned().try_into()?)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Returns what tells the service who asks: the name and password of the URL, or the token of the environment.
fn credentials(base: &Url) -> Result<Option<String>> {
    if !base.username().is_empty() {
        let decoded = |text: &str| {
            url::form_urlencoded::parse(format!("x={text}").replace('+', "%2B").replace('&', "%26").as_bytes())
                .next()
                .map(|(_, text)| text.into_owned())
                .unwrap_or_default()
        };
        let said = format!("{}:{}", decoded(base.username()), decoded(base.password().unwrap_or_default()));
        return Ok(Some(format!("Basic {}", STANDARD.encode(said))));
    }
    match std::env::var(TOKEN_VARIABLE) {
        Ok(token) => {
            anyhow::ensure!(token.chars().all(|c| c.is_ascii_graphic()), "{TOKEN_VARIABLE} holds no token");
            Ok(Some(format!("Bearer {token}")))
        }
        Err(_) => Ok(None),
    }
}

fn refusal(status: &str, body: &[u8]) -> String {
    let parsed: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = |name: &str| parsed.get("error")?.get(name)?.as_str().map(str::to_owned);
    match (status, said("message"), said("hint")) {
        ("401", Some(message), _) => {
            format!("{message} (hint: --url http://NAME:PASSWORD@HOST:PORT, or a token in {TOKEN_VARIABLE})")
        }
        (_, Some(message), Some(hint)) => format!("{message} (hint: {hint})"),
        (_, Some(message), None) => message,
        _ => format!("the service answered {status}"),
    }
}
