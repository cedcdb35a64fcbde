//! Passwords that are known only by what proves them: SCRAM-SHA-256 (RFC 5802, RFC 7677), in the form that Postgres keeps.
//!
//! A verifier tells whether somebody knows a password, and lets nobody log in who has read it.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// The name of the mechanism.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// What Postgres takes by default.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4_096).expect("it is not zero");
/// What takes a second or so.
const ITERATIONS_MAX: NonZeroU32 = NonZeroU32::new(2_000_000).expect("it is not zero");
const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;
/// Bytes of a nonce, before they are written as text.
const NONCE_BYTES: usize = 18;

type Key = [u8; KEY_BYTES];

/// What proves a password: `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, the last three in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("expected SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>, as `bellwether user` writes it")]
    Verifier,
    #[error("the client's message is none of SCRAM-SHA-256")]
    Message,
    #[error("the password is wrong")]
    Password,
    #[error("no randomness is to be had")]
    Random,
}

impl Verifier {
    /// Makes what proves a password.
    pub fn of(password: &str) -> Result<Verifier, ScramError> {
        Ok(Verifier::with(password, &random::<SALT_BYTES>()?, ITERATIONS))
    }

    /// Makes a verifier that no password satisfies: who is not known is asked as if they were.
    pub fn of_nobody(name: &str, secret: &hmac::Key) -> Result<Verifier, ScramError> {
        // The same name gets the same salt, as somebody who is known does.
        let salt = hmac::sign(secret, name.as_bytes()).as_ref()[..SALT_BYTES].to_vec();
        Ok(Verifier { iterations: ITERATIONS, salt, stored_key: random()?, server_key: random()? })
    }

    fn with(password: &str, salt: &[u8], iterations: NonZeroU32) -> Verifier {
        // As Postgres does, what cannot be normalized is taken as it is.
        let normal = stringprep::saslprep(password).unwrap_or(password.into());
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, normal.as_bytes(), &mut salted);
        Verifier {
            iterations,
            salt: salt.to_vec(),
            stored_key: sha256(&signature(&salted, b"Client Key")),
            server_key: signature(&salted, b"Server Key"),
        }
    }

    /// Returns whether a password is the right one. Takes a few milliseconds, on purpose.
    pub fn proves(&self, password: &str) -> bool {
        let made = Verifier::with(password, &self.salt, self.iterations);
        is_same(&made.stored_key, &self.stored_key)
    }

    /// Answers the client's first message.
    pub fn exchange(self, first: &[u8]) -> Result<(Vec<u8>, Exchange), ScramError> {
        self.exchange_with(first, &STANDARD.encode(random::<NONCE_BYTES>()?))
    }

    fn exchange_with(self, first: &[u8], nonce: &str) -> Result<(Vec<u8>, Exchange), ScramError> {
        let first = std::str::from_utf8(first).map_err(|_| ScramError::Message)?;
        // `n` or `y`: without channel binding, which is not offered.
        let bare = first.strip_prefix("n,").or_else(|| first.strip_prefix("y,")).ok_or(ScramError::Message)?;
        let (authorized_as, bare) = bare.split_once(',').ok_or(ScramError::Message)?;
        let header = first.strip_suffix(bare).ok_or(ScramError::Message)?.to_owned();
        let of_client = attribute(bare.split(','), "r").filter(|nonce| !nonce.is_empty());
        let is_plain = authorized_as.is_empty() && !bare.starts_with("m=");
        let of_client = of_client.filter(|_| is_plain).ok_or(ScramError::Message)?;
        let nonce = format!("{of_client}{nonce}");
        let said = format!("r={nonce},s={},i={}", STANDARD.encode(&self.salt), self.iterations);
        let exchange = Exchange { header, so_far: format!("{bare},{said}"), nonce, verifier: self };
        Ok((said.into_bytes(), exchange))
    }
}

/// A client that was told the salt, and is to prove that it knows the password.
#[derive(Debug)]
pub struct Exchange {
    /// What the client began with, which it is to repeat.
    header: String,
    nonce: String,
    so_far: String,
    verifier: Verifier,
}

impl Exchange {
    /// Checks the client's proof, and returns ours.
    pub fn finish(self, last: &[u8]) -> Result<Vec<u8>, ScramError> {
        let last = std::str::from_utf8(last).map_err(|_| ScramError::Message)?;
        let (without_proof, proof) = last.rsplit_once(",p=").ok_or(ScramError::Message)?;
        let header = attribute(without_proof.split(','), "c").and_then(|header| STANDARD.decode(header).ok());
        let is_ours = attribute(without_proof.split(','), "r") == Some(&self.nonce);
        if header.as_deref() != Some(self.header.as_bytes()) || !is_ours {
            return Err(ScramError::Message);
        }
        let proof =
            STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok()).ok_or(ScramError::Message)?;
        let said = format!("{},{without_proof}", self.so_far);
        let mut client_key = signature(&self.verifier.stored_key, said.as_bytes());
        client_key.iter_mut().zip(proof).for_each(|(byte, proof)| *byte ^= proof);
        if !is_same(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::Password);
        }
        let ours = signature(&self.verifier.server_key, said.as_bytes());
        Ok(format!("v={}", STANDARD.encode(ours)).into_bytes())
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] = [&self.salt[..], &self.stored_key, &self.server_key].map(|of| STANDARD.encode(of));
        write!(f, "{MECHANISM}${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl FromStr for Verifier {
    type Err = ScramError;

    fn from_str(text: &str) -> Result<Verifier, ScramError> {
        let parts = || {
            let (mechanism, rest) = text.split_once('$')?;
            let (of_salt, of_keys) = rest.split_once('$')?;
            let ((iterations, salt), (stored, server)) = (of_salt.split_once(':')?, of_keys.split_once(':')?);
            let key = |text: &str| Key::try_from(STANDARD.decode(text).ok()?).ok();
            Some(Verifier {
                iterations: iterations
                    .parse()
                    .ok()
                    .filter(|&count| mechanism == MECHANISM && count <= ITERATIONS_MAX)?,
                salt: STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
                stored_key: key(stored)?,
                server_key: key(server)?,
            })
        };
        parts().ok_or(ScramError::Verifier)
    }
}

fn attribute<'a>(mut of: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    of.find_map(|one| one.strip_prefix(name)?.strip_prefix('='))
}

fn signature(key: &[u8], of: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), of);
    Key::try_from(tag.as_ref()).expect("HMAC-SHA-256 is as long as SHA-256")
}

/// Returns the SHA-256 of bytes.
pub(super) fn sha256(of: &[u8]) -> Key {
    Key::try_from(digest::digest(&digest::SHA256, of).as_ref()).expect("SHA-256 is of its length")
}

/// Compares in a time that does not depend on where two keys differ.
pub(super) fn is_same(a: &Key, b: &Key) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Returns random bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u8; N], ScramError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| ScramError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWORD: &str = "pencil";

    /// The example of RFC 7677, 3.
    fn of_the_rfc() -> Verifier {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Verifier::with(PASSWORD, &salt, ITERATIONS)
    }

    const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_exchange_is_that_of_the_rfc() {
        let (said, exchange) = of_the_rfc().exchange_with(FIRST, NONCE).unwrap();
        let expected = format!("r=rOprNGfwEbeRWgbNEkqO{NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        assert_eq!(String::from_utf8(said).unwrap(), expected);
        let said = exchange.finish(LAST.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(said).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_wrong_proof_or_a_message_out_of_form_is_refused() {
        let proof = LAST.rsplit_once("p=").unwrap().1;
        let other = STANDARD.encode([7; KEY_BYTES]);
        let cases = [
            (LAST.replace(proof, &other), ScramError::Password),
            (LAST.replace(proof, "AAAA"), ScramError::Message),
            (LAST.replace("c=biws", "c=eSws"), ScramError::Message),
            (LAST.replace("k0,p", "k1,p"), ScramError::Message),
            (String::new(), ScramError::Message),
        ];
        for (last, expected) in cases {
            let (_, exchange) = of_the_rfc().exchange_with(FIRST, NONCE).unwrap();
            assert_eq!(exchange.finish(last.as_bytes()), Err(expected), "{last}");
        }
        for first in
            [&b"p=tls-server-end-point,,n=u,r=x"[..], b"n,a=other,n=u,r=x", b"n,,m=1,n=u,r=x", b"n,,n=u,r=", b"\xff"]
        {
            assert!(of_the_rfc().exchange(first).is_err(), "{first:?}");
        }
    }

    #[test]
    fn a_verifier_survives_being_written_and_proves_its_password_alone() {
        let made = Verifier::of("päss wörd").unwrap();
        let read: Verifier = made.to_string().parse().unwrap();
        assert!(read == made && read.proves("päss wörd") && !read.proves("pass word"));
        let of_nobody = Verifier::of_nobody("who", &hmac::Key::new(hmac::HMAC_SHA256, b"key")).unwrap();
        assert!(!of_nobody.proves(""));
        for text in ["", "md5abc", "SCRAM-SHA-256$0:YQ==$YQ==:YQ==", "SCRAM-SHA-256$4096:$YQ==:YQ=="] {
            assert_eq!(text.parse::<Verifier>(), Err(ScramError::Verifier), "{text}");
        }
    }
}
