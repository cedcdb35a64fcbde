//! SQL for clients of Postgres: its protocol, version 3, with TLS, SCRAM and cancel. Translates; what is answered is for
//! [`crate::query`] to say.

mod answers;
mod bounded;
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
use futures::StreamExt as _;
use pgwire::api::cancel::CancelHandler;
use pgwire::api::{ClientInfo, NoopHandler, PgWireConnectionState};
use pgwire::error::{ErrorInfo, PgWireError};
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use pgwire::tokio::server::{negotiate_tls, process_error, process_message};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::codec::{Framed, FramedParts};
use tracing::{debug, info, warn};

use super::Limits;
use super::accounts::Accounts;
use crate::query::{Engine, Surface};
use bounded::Bounded;
use session::Startup;
use statements::Statements;

/// How often it is looked whether a client went away while it waits for an answer.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Longest time until somebody has said who they are, and proved it.
const STARTUP_MAX: Duration = Duration::from_secs(30);

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
        // Each takes two of the files that the process may open.
        let slots = Arc::new(Semaphore::new(limits.connections_max / 2));
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
        let _session = Session { service: self.clone(), id };
        let ended = tokio::select! {
            ended = self.answer(stream, &handlers) => ended,
            () = gone => Ok(()),
        };
        if let Err(error) = ended {
            debug!(%peer, %error, "a connection ended with an error");
        }
    }

    /// Answers messages until one side has had enough. Who has not come in within a while, or was refused, is left.
    async fn answer(&self, stream: TcpStream, handlers: &Handlers) -> io::Result<()> {
        let until = Instant::now() + STARTUP_MAX;
        let negotiated = timeout_at(until, negotiate_tls(stream, self.tls.clone())).await;
        let Ok(Some(socket)) = negotiated.unwrap_or_else(|_| Ok(None)) else { return Ok(()) };
        let FramedParts { io, codec, read_buf, write_buf, .. } = socket.into_parts();
        let mut parts = FramedParts::new::<PgWireBackendMessage>(Bounded::new(io, &read_buf)?, codec);
        (parts.read_buf, parts.write_buf) = (read_buf, write_buf);
        let mut socket = Framed::from_parts(parts);
        loop {
            use PgWireConnectionState::{AuthenticationInProgress, AwaitingStartup};
            let is_stranger = matches!(socket.state(), AwaitingStartup | AuthenticationInProgress);
            let message = if is_stranger {
                timeout_at(until, socket.next()).await.unwrap_or(None)
            } else {
                socket.get_mut().admit();
                socket.next().await
            };
            let message = match message {
                Some(Ok(message)) if !matches!(message, PgWireFrontendMessage::Terminate(_)) => message,
                Some(Err(error)) => return Err(io::Error::other(error)),
                _ => return Ok(()),
            };
            let is_extended = message.is_extended_query();
            let (startup, statements) = (handlers.startup.clone(), handlers.statements.clone());
            let (copy, cancel) = (Arc::new(NoopHandler), Arc::new(Cancel(handlers.service.clone())));
            let done =
                process_message(message, &mut socket, startup, statements.clone(), statements, copy, cancel).await;
            if let Err(error) = done {
                debug!(client = %socket.socket_addr(), %error, "statement refused");
                let info = ErrorInfo::from(error);
                let is_last = is_stranger || info.is_fatal();
                process_error(&mut socket, PgWireError::UserError(Box::new(info)), is_extended).await?;
                if is_last {
                    return Ok(());
                }
            }
        }
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

/// A connection that is open; whatever ends it, its queries end too.
struct Session {
    service: Arc<Service>,
    id: u32,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.service.query.running().kill_session(Surface::Postgres, self.id);
        self.service.sessions.end(self.id);
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
