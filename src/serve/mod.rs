//! Serve: HTTP for people and machines (the scrape page, health, SQL, Flight SQL), and Postgres' protocol. Translates and
//! limits; decides nothing but who may come in.
//!
//! The only user of axum, tonic and pgwire. It must never touch the store or the stream itself: rows come from [`crate::query`], numbers from
//! [`crate::telemetry`], readiness from whoever wired the program.

mod accept;
pub mod accounts;
mod connection;
mod counted;
mod failure;
mod flight;
mod postgres;
mod routes;
pub mod scram;
mod sql;
pub mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::query::Engine;
use crate::telemetry::Telemetry;
use accounts::Accounts;
use connection::{Activity, Limited};
use tls::{Tls, TlsError};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Address and port of HTTP; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Address and port for clients of Postgres; none for none.
    pub postgres: Option<SocketAddr>,
    /// What connections are encrypted with; none for plain text.
    pub tls: Option<tls::Files>,
}

/// Whether the program does its work, and if not, every reason why, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub reasons: Vec<String>,
}

/// Reads the configuration anew and applies it; returns what changed, or why it was refused.
pub type Reload = Arc<dyn Fn() -> BoxFuture<'static, Result<serde_json::Value, String>> + Send + Sync>;

/// What the routes answer from.
#[derive(Clone)]
pub struct Api {
    pub query: Arc<Engine>,
    pub accounts: Accounts,
    pub telemetry: Telemetry,
    /// Asked at every request to `/readyz`; must return at once.
    pub ready: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// What each view does and why, as a list of objects with a `view` each; must return at once.
    pub views: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// None where there is no configuration to read again.
    pub reload: Option<Reload>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("failed to listen on {listen}; {}", bind_hint(source, key))]
    Bind { listen: SocketAddr, key: &'static str, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("failed to serve on {listen}")]
    Serve { listen: SocketAddr, source: io::Error },
}

/// How much a client may take. One set for all; a test may be stricter.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once; more wait in the backlog of the listening socket.
    connections_max: usize,
    /// Longest time without a complete request head or without progress in taking an answer. Above the minute at which
    /// scrapers come back, so that they can keep their connection.
    quiet_max: Duration,
    /// Longest time in which a request's body must arrive.
    body_time_max: Duration,
    /// Largest body of a request; SQL text is all that is ever sent.
    body_bytes_max: usize,
    /// Longest wait for running requests at shutdown.
    drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 512,
            quiet_max: Duration::from_secs(75),
            body_time_max: Duration::from_secs(10),
            body_bytes_max: 1024 * 1024,
            drain_max: Duration::from_secs(10),
        }
    }
}

/// Listens and serves until `shutdown` resolves, then lets running requests end within a deadline.
pub async fn serve(
    settings: &Settings,
    api: Api,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    Bound::bind(settings).await?.serve(api, shutdown).await
}

/// Sockets that listen but do not answer yet: so a taken port is known before anything else is started.
#[derive(Debug)]
pub struct Bound {
    http: Socket,
    postgres: Option<Socket>,
    tls: Option<Tls>,
    limits: Limits,
}

#[derive(Debug)]
struct Socket {
    listener: TcpListener,
    address: SocketAddr,
}

impl Socket {
    async fn bind(listen: SocketAddr, key: &'static str) -> Result<Socket, ServeError> {
        let bind = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok(Socket { listener, address })
        };
        bind.await.map_err(|source| ServeError::Bind { listen, key, source })
    }
}

impl Bound {
    pub async fn bind(settings: &Settings) -> Result<Self, ServeError> {
        let tls = settings.tls.clone().map(Tls::read).transpose()?;
        let http = Socket::bind(settings.listen, "serve.listen").await?;
        let postgres = match settings.postgres {
            Some(listen) => Some(Socket::bind(listen, "serve.postgres").await?),
            None => None,
        };
        Ok(Bound { http, postgres, tls, limits: Limits::default() })
    }

    /// Returns the address on which HTTP is really listened for, also where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.http.address
    }

    /// Returns the address on which clients of Postgres are listened for.
    pub fn postgres(&self) -> Option<SocketAddr> {
        self.postgres.as_ref().map(|socket| socket.address)
    }

    /// Returns what connections are encrypted with.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Serves until `shutdown` resolves. Then nothing new is accepted; running requests get a deadline, and those that
    /// miss it are answered with 503.
    pub async fn serve(self, api: Api, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let Bound { http, postgres, tls, limits } = self;
        counted::count(&api.query, api.telemetry.clone());
        let acceptor = |protocols: &[&[u8]]| tls.as_ref().map(|tls| tls.acceptor(protocols)).transpose();
        let (stop, stopping) = watch::channel(false);
        let stopped = move || {
            let mut stopping = stopping.clone();
            async move {
                // An error means that nobody is left to say it.
                let _ = stopping.wait_for(|&stop| stop).await;
            }
        };
        let of_postgres = {
            let service = postgres::Service::new(api.query.clone(), api.accounts.clone(), acceptor(&[b"postgresql"])?);
            let stopped = stopped();
            async move {
                if let Some(Socket { listener, address }) = postgres {
                    info!(%address, "serving clients of postgres");
                    service.serve(listener, limits, stopped).await;
                }
            }
        };
        let of_http = serve_http(http, acceptor(&[b"h2", b"http/1.1"])?, api, limits, stopped());
        let told = async move {
            shutdown.await;
            stop.send_replace(true);
        };
        let (served, (), ()) = tokio::join!(of_http, of_postgres, told);
        served
    }
}

async fn serve_http(
    socket: Socket,
    tls: Option<TlsAcceptor>,
    api: Api,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let Socket { listener, address } = socket;
    let (draining, mut drain) = watch::channel(false);
    let (cutting, cut) = watch::channel(false);
    let app = routes::router(api, limits, cut).into_make_service_with_connect_info::<Activity>();
    let is_encrypted = tls.is_some();
    let server = axum::serve(Limited::new(listener, tls, limits), app).with_graceful_shutdown(async move {
        shutdown.await;
        draining.send_replace(true);
    });
    info!(%address, is_encrypted, "serving http");
    let mut server = pin!(server.into_future());
    let deadline = async {
        // An error means that the server let go of the sender, hence is done: nothing to wait for.
        if drain.wait_for(|&draining| draining).await.is_ok() {
            tokio::time::sleep(limits.drain_max).await;
        }
    };
    let served = tokio::select! {
        served = &mut server => served,
        () = deadline => {
            warn!(?limits.drain_max, "cutting off requests that outlast the shutdown");
            cutting.send_replace(true);
            // What remains after the answers went out is a client that does not read.
            timeout(Duration::from_secs(1), server).await.unwrap_or(Ok(()))
        }
    };
    served.map_err(|source| ServeError::Serve { listen: address, source })
}

fn bind_hint(error: &io::Error, key: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("another program listens there: stop it or set another port in {key}"),
        io::ErrorKind::PermissionDenied => format!("ports below 1024 need a privilege: set a higher one in {key}"),
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address: set {key} to one it has, or 0.0.0.0")
        }
        _ => format!("check {key}"),
    }
}

#[cfg(test)]
mod tests;
