//! Connections with limits: how many at once, and how long one may be quiet; with TLS where it is set up. Knows bytes, not
//! HTTP.
//!
//! axum sets no timer on the connections it serves, so a client that sends a request one byte a minute, or never reads its
//! answer, would hold a connection for ever. Here such a one ends with an error.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::Limits;

/// A listener that accepts while there is a free slot.
pub(super) struct Limited {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    slots: Arc<Semaphore>,
    quiet_max: Duration,
}

impl Limited {
    pub(super) fn new(listener: TcpListener, tls: Option<TlsAcceptor>, limits: Limits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        Limited { listener, tls, slots, quiet_max: limits.quiet_max }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // Answers are written whole; waiting to fill a segment would only delay their end. Failing is harmless.
        let _ = stream.set_nodelay(true);
        let wire = match &self.tls {
            // The handshake is the connection's own work: a client that does not end it holds up nobody else.
            Some(tls) => Wire::Handshake(Box::new(tls.accept(stream))),
            None => Wire::Plain(stream),
        };
        (Connection::new(wire, peer, slot, self.quiet_max), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What a connection is doing, shared between its bytes and its requests.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    pub(super) peer: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Requests that are being worked on: while there is one it is our turn, and the client may be quiet.
    answering: usize,
    /// Last moment at which it became the client's turn, or at which it took some of the answer.
    moved_at: Instant,
}

impl Activity {
    fn new(peer: SocketAddr) -> Self {
        let state = State { answering: 0, moved_at: Instant::now() };
        Activity { peer, state: Arc::new(Mutex::new(state)) }
    }

    /// Marks the connection as waiting for us until what is returned is dropped.
    pub(super) fn answering(&self) -> Answering {
        self.state().answering += 1;
        Answering(self.clone())
    }

    fn moved(&self) {
        self.state().moved_at = Instant::now();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each field is written in one piece, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected<IncomingStream<'_, Limited>> for Activity {
    fn connect_info(stream: IncomingStream<'_, Limited>) -> Self {
        stream.io().activity.clone()
    }
}

/// While it lives, a request is being worked on.
#[derive(Debug)]
pub(super) struct Answering(Activity);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answering -= 1;
        state.moved_at = Instant::now();
    }
}

/// The bytes, with TLS or without.
enum Wire {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Does something with the bytes, once the handshake is done.
macro_rules! on_wire {
    ($connection:expr, $cx:expr, $poll:ident($($arguments:expr),*)) => {
        match $connection.poll_wire($cx) {
            Poll::Ready(Ok(Wire::Plain(stream))) => Pin::new(stream).$poll($cx, $($arguments),*),
            Poll::Ready(Ok(Wire::Tls(stream))) => Pin::new(stream).$poll($cx, $($arguments),*),
            Poll::Ready(Ok(Wire::Handshake(_))) | Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    };
}

/// A stream that fails once the client was quiet for too long.
pub(super) struct Connection {
    wire: Wire,
    activity: Activity,
    quiet_max: Duration,
    alarm: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(wire: Wire, peer: SocketAddr, slot: OwnedSemaphorePermit, quiet_max: Duration) -> Self {
        let activity = Activity::new(peer);
        let alarm = Box::pin(sleep_until(Instant::now() + quiet_max));
        Connection { wire, activity, quiet_max, alarm, _slot: slot }
    }

    /// Resolves with the bytes once the handshake is done, where there is one.
    fn poll_wire(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Wire>> {
        if let Wire::Handshake(accept) = &mut self.wire {
            let stream = ready!(Pin::new(accept).poll(cx))?;
            self.wire = Wire::Tls(Box::new(stream));
        }
        Poll::Ready(Ok(&mut self.wire))
    }

    /// Resolves with the error once the client was quiet for too long; until then sees to it that the task is woken.
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.activity.state().moved_at + self.quiet_max;
        if self.alarm.deadline() != deadline {
            self.alarm.as_mut().reset(deadline);
        }
        ready!(self.alarm.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client was quiet for too long"))
    }

    fn after_write(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                if bytes > 0 {
                    self.activity.moved();
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Pending => self.poll_quiet(cx).map(Err),
            failed => failed,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match on_wire!(this, cx, poll_read(buf)) {
            // Bytes that arrive do not count as movement: only a complete head, which starts an answer, does.
            Poll::Pending if this.activity.state().answering == 0 => this.poll_quiet(cx).map(Err),
            read => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = on_wire!(this, cx, poll_write(bytes));
        this.after_write(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = on_wire!(this, cx, poll_write_vectored(slices));
        this.after_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self.wire, Wire::Handshake(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match on_wire!(this, cx, poll_flush()) {
            // TLS takes bytes that the client does not: they wait here.
            Poll::Pending => this.poll_quiet(cx).map(Err),
            flushed => flushed,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match on_wire!(this, cx, poll_shutdown()) {
            Poll::Pending => this.poll_quiet(cx).map(Err),
            ended => ended,
        }
    }
}
