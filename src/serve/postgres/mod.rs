//! SQL for clients of Postgres: its protocol, version 3, with TLS, SCRAM and cancel. Translates; what is answered is for
//! [`crate::query`] to say.

mod answers;
mod session;
mod statements;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use pgwire::api::cancel::CancelHandler;
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::{ClientInfo, ErrorHandler, PgWireServerHandlers, auth::StartupHandler};
use pgwire::error::PgWireError;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use pgwire::tokio::process_socket;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::Limits;
use super::accounts::Accounts;
use crate::query::{Engine, Surface};
use session::Startup;
use statements::Statements;

/// How often it is looked whether a client went away while it waits for an answer.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What every connection answers from.
pub(super) struct Service {
    pub query: Arc<Engine>,
    pub accounts: Accounts,
    /// What connections are encrypted with; those from other machines must be, where it is there.
    pub tls: Option<TlsAcceptor>,
    sessions: Sessions,
}

impl Service {
    pub fn new(query: Arc<Engine>, accounts: Accounts, tls: Option<TlsAcceptor>) -> Service {
        Service { query, accounts, tls, sessions: Sessions::default() }
    }

    /// Serves until `shutdown` resolves; then connections end once they have no query running, or at the deadline.
    pub async fn serve(self, listener: TcpListener, limits: Limits, shutdown: impl Future<Output = ()>) {
        let service = Arc::new(self);
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepting = async {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                (listener.accept().await, slot)
            };
            let (accepted, slot) = tokio::select! {
                accepted = accepting => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                () = &mut shutdown => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let service = service.clone();
                    connections.spawn(async move {
                        service.converse(stream, peer).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Such as too many open files: it passes when connections end.
                    warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
        drop(listener);
        let running = service.query.running().clone();
        let idle = async {
            let mut look = interval(LOOK_EVERY);
            while running.count(Surface::Postgres) > 0 {
                look.tick().await;
            }
        };
        if tokio::time::timeout(limits.drain_max, idle).await.is_err() {
            warn!(?limits.drain_max, "cutting off queries that outlast the shutdown");
        }
        connections.shutdown().await;
    }

    /// Answers one connection to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let id = self.sessions.begin();
        let watched = watched(stream);
        let (stream, gone) = match watched {
            Ok(both) => both,
            Err(error) => return debug!(%peer, %error, "a connection ended before it began"),
        };
        let handlers = Handlers {
            startup: Arc::new(Startup::new(self.clone(), id, peer)),
            statements: Arc::new(Statements(self.clone())),
            service: self.clone(),
        };
        let ended = tokio::select! {
            ended = process_socket(stream, self.tls.clone(), handlers) => ended,
            () = gone => Ok(()),
        };
        if let Err(error) = ended {
            debug!(%peer, %error, "a connection ended with an error");
        }
        self.query.running().kill_session(Surface::Postgres, id);
        self.sessions.end(id);
    }
}

/// Returns a stream, and what resolves once its client is gone: nobody reads from it while an answer is made, so that
/// nobody else would see it.
fn watched(stream: TcpStream) -> io::Result<(TcpStream, impl Future<Output = ()>)> {
    let stream = stream.into_std()?;
    let watched = TcpStream::from_std(stream.try_clone()?)?;
    let gone = async move {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            match watched.ready(Interest::READABLE).now_or_never() {
                // What it still had to say, such as its farewell, may stand unread before the end.
                Some(Ok(ready)) if ready.is_read_closed() => break,
                Some(Err(_)) => break,
                _ => {}
            }
        }
    };
    Ok((TcpStream::from_std(stream)?, gone))
}

/// The connections that are open, with what a client must know to cancel its query from another.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    last: AtomicU32,
    secrets: Mutex<HashMap<u32, i32>>,
}

impl Sessions {
    /// Returns a number that no other open connection has: it goes over the wire as the id of a process.
    fn begin(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    fn keep(&self, id: u32, secret: i32) {
        self.secrets().insert(id, secret);
    }

    fn end(&self, id: u32) {
        self.secrets().remove(&id);
    }

    fn has(&self, id: u32, secret: i32) -> bool {
        self.secrets().get(&id) == Some(&secret)
    }

    fn secrets(&self) -> MutexGuard<'_, HashMap<u32, i32>> {
        // An entry comes or goes in one piece, so a panic elsewhere leaves nothing half-done.
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one connection is handled by.
struct Handlers {
    startup: Arc<Startup>,
    statements: Arc<Statements>,
    service: Arc<Service>,
}

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        self.statements.clone()
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        self.statements.clone()
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        self.startup.clone()
    }

    fn error_handler(&self) -> Arc<impl ErrorHandler> {
        Arc::new(Logged)
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::new(Cancel(self.service.clone()))
    }
}

struct Cancel(Arc<Service>);

#[async_trait]
impl CancelHandler for Cancel {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let secret = match request.secret_key {
            SecretKey::I32(secret) => Some(secret),
            SecretKey::Bytes(bytes) => bytes.as_ref().try_into().ok().map(i32::from_be_bytes),
        };
        let id = request.pid.cast_unsigned();
        if secret.is_some_and(|secret| self.0.sessions.has(id, secret)) {
            self.0.query.running().kill_session(Surface::Postgres, id);
        } else {
            info!(id, "a cancel request names no session that is open");
        }
    }
}

struct Logged;

impl ErrorHandler for Logged {
    fn on_error<C: ClientInfo>(&self, client: &C, error: &mut PgWireError) {
        debug!(client = %client.socket_addr(), %error, "statement refused");
    }
}
