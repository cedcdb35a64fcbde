//! Bytes of a client of Postgres, in messages of a bounded length: what claims to be longer ends the connection before it is
//! kept.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest message of somebody who has not come in yet: their name, and what proves it.
const STRANGER_BYTES_MAX: u32 = 16 << 10;
/// Longest message of a user: a statement, or the parameters of one.
const USER_BYTES_MAX: u32 = 4 << 20;

/// A stream that looks at the lengths of what it reads.
pub(super) struct Bounded<S> {
    inner: S,
    lengths: Lengths,
}

/// How far into a message a stream is.
#[derive(Debug)]
struct Lengths {
    /// Kind and length of a message, as far as they have come.
    head: Vec<u8>,
    /// The first message has no kind.
    head_bytes: usize,
    /// Bytes of the message that are still to come.
    left: u32,
    bytes_max: u32,
}

impl<S> Bounded<S> {
    /// Goes on with a stream of which so much was read already, and no message taken out.
    pub fn new(inner: S, read: &[u8]) -> io::Result<Bounded<S>> {
        let mut lengths = Lengths { head: Vec::new(), head_bytes: 4, left: 0, bytes_max: STRANGER_BYTES_MAX };
        lengths.pass(read)?;
        Ok(Bounded { inner, lengths })
    }

    /// Allows what a user may send.
    pub fn admit(&mut self) {
        self.lengths.bytes_max = USER_BYTES_MAX;
    }
}

impl Lengths {
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let passed = bytes.len().min(self.left as usize);
                self.left -= passed as u32;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(first);
            bytes = rest;
            if self.head.len() < self.head_bytes {
                continue;
            }
            let length =
                self.head.iter().rev().take(4).rev().fold(0_u32, |length, &byte| length << 8 | u32::from(byte));
            if length < 4 || length > self.bytes_max {
                let message = format!("a message of {length} bytes came, at most {} are read", self.bytes_max);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // The length counts itself.
            self.left = length - 4;
            self.head_bytes = 5;
            self.head.clear();
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        Poll::Ready(this.lengths.pass(&buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, bytes: u32) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend((bytes + 4).to_be_bytes());
        message.extend(vec![b'x'; bytes as usize]);
        message
    }

    #[test]
    fn messages_pass_however_they_are_cut() {
        let mut stream = message(0, 100)[1..].to_vec();
        stream.extend(message(b'p', 0));
        stream.extend(message(b'Q', 10_000));
        for step in [1, 3, 7, 1_000, stream.len()] {
            let mut bounded = Bounded::new((), &[]).unwrap();
            stream.chunks(step).for_each(|chunk| bounded.lengths.pass(chunk).unwrap());
            assert!(bounded.lengths.left == 0 && bounded.lengths.head.is_empty(), "{step}");
        }
    }

    #[test]
    fn a_message_that_claims_too_much_is_refused_at_its_head() {
        let long = &message(b'Q', STRANGER_BYTES_MAX)[..5];
        let mut bounded = Bounded::new((), &message(0, 8)[1..]).unwrap();
        assert!(bounded.lengths.pass(long).is_err());
        let mut bounded = Bounded::new((), &message(0, 8)[1..]).unwrap();
        bounded.admit();
        assert!(bounded.lengths.pass(long).is_ok());
        let short = [b'Q', 0, 0, 0, 3];
        assert!(Bounded::new((), &message(0, 8)[1..]).unwrap().lengths.pass(&short).is_err());
    }
}
