//! Serve: HTTP for people and machines: the scrape page, health, SQL. Translates and limits; decides nothing.
//!
//! The only user of axum. It must never touch the store or the stream itself: rows come from [`crate::query`], numbers from
//! [`crate::telemetry`], readiness from whoever wired the program.

mod accept;
mod connection;
mod failure;
mod routes;
mod sql;

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
use tracing::{info, warn};

use crate::query::Engine;
use crate::telemetry::Telemetry;
use connection::{Activity, Limited};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Address and port; port 0 takes any that is free.
    pub listen: SocketAddr,
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
    #[error("failed to listen on {listen}; {}", bind_hint(source))]
    Bind { listen: SocketAddr, source: io::Error },
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

/// A socket that listens but does not answer yet: so a taken port is known before anything else is started.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Bound {
    pub async fn bind(settings: &Settings) -> Result<Self, ServeError> {
        let listen = settings.listen;
        let bind = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bind.await.map_err(|source| ServeError::Bind { listen, source })?;
        Ok(Bound { listener, address, limits: Limits::default() })
    }

    /// Returns the address that is really listened on, also where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves. Then nothing new is accepted; running requests get a deadline, and those that
    /// miss it are answered with 503.
    pub async fn serve(self, api: Api, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let Bound { listener, address, limits } = self;
        let (draining, mut drain) = watch::channel(false);
        let (cutting, cut) = watch::channel(false);
        let app = routes::router(api, limits, cut).into_make_service_with_connect_info::<Activity>();
        let server = axum::serve(Limited::new(listener, limits), app).with_graceful_shutdown(async move {
            shutdown.await;
            draining.send_replace(true);
        });
        info!(%address, "serving http");
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
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there: stop it or set another port in serve.listen",
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: set a higher one in serve.listen",
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address: set serve.listen to one it has, or 0.0.0.0"
        }
        _ => "check serve.listen",
    }
}

#[cfg(test)]
mod tests;
