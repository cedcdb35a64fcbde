//! Who may come in: users with a password, a token, or both; everyone where there are none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use tokio::sync::Semaphore;

use super::scram::{ScramError, Verifier, is_same, random, sha256};
use crate::query::User;

/// How the digest of a token is written in the file of users.
pub const TOKEN_DIGEST: &str = "SHA-256$";
const TOKEN_BYTES: usize = 32;
/// Most passwords that are proved at once.
const PROOFS_MAX: usize = 2;

/// Base64 with padding or without: Arrow's drivers leave it out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD_ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One user, and how they are known.
pub struct Account {
    pub user: Arc<User>,
    pub password: Option<Verifier>,
    pub token: Option<TokenDigest>,
    /// Digest of the password that was last found right, so that it need not be proved for every request.
    proved: OnceLock<[u8; 32]>,
}

/// SHA-256 of a token: a token is random and long, so that its digest gives nothing away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Makes a new token, and returns it with its digest.
    pub fn make() -> Result<(String, TokenDigest), ScramError> {
        let token = URL_SAFE_NO_PAD.encode(random::<TOKEN_BYTES>()?);
        let digest = TokenDigest(sha256(token.as_bytes()));
        Ok((token, digest))
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_DIGEST}{}", STANDARD.encode(self.0))
    }
}

impl std::str::FromStr for TokenDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenDigest, String> {
        let digest = text.strip_prefix(TOKEN_DIGEST).and_then(|digest| STANDARD.decode(digest).ok());
        let digest = digest.and_then(|digest| digest.try_into().ok());
        digest
            .map(TokenDigest)
            .ok_or_else(|| format!("expected {TOKEN_DIGEST} and 32 bytes in base64, as `bellwether user` writes it"))
    }
}

impl Account {
    pub fn new(user: Arc<User>, password: Option<Verifier>, token: Option<TokenDigest>) -> Account {
        Account { user, password, token, proved: OnceLock::new() }
    }

    /// Returns whether a password is the one that was last found right.
    fn has_proved(&self, password: &str) -> bool {
        self.proved.get().is_some_and(|proved| is_same(proved, &sha256(password.as_bytes())))
    }
}

/// Everyone who may come in. Cloned, it is the same.
#[derive(Clone)]
pub struct Accounts(Arc<Shared>);

struct Shared {
    known: RwLock<Arc<Known>>,
    /// Signs what this process hands out.
    key: hmac::Key,
    /// To prove a password takes a processor for a while, on purpose.
    proving: Semaphore,
}

/// Whom a process knows at one time.
enum Known {
    /// Nobody is told apart: whoever comes is this user.
    Everyone(Arc<User>),
    Accounts(BTreeMap<String, Account>),
}

/// Why somebody was not let in. It does not say whether the name is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("expected a name and a password, or a token, got neither")]
    Nothing,
    #[error("expected Basic or Bearer credentials, got others")]
    Unknown,
    #[error("the name or the password is wrong")]
    Password,
    #[error("the token is not known")]
    Token,
}

impl Accounts {
    /// Lets everyone in as this user.
    pub fn everyone(user: Arc<User>) -> Result<Accounts, ScramError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<TOKEN_BYTES>()?);
        let known = RwLock::new(Arc::new(Known::Everyone(user)));
        Ok(Accounts(Arc::new(Shared { known, key, proving: Semaphore::new(PROOFS_MAX) })))
    }

    /// Lets in these from now on, and nobody else.
    pub fn set(&self, accounts: Vec<Account>) {
        let accounts = accounts.into_iter().map(|account| (account.user.name.clone(), account)).collect();
        *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Known::Accounts(accounts));
    }

    /// Returns the user that everyone is; none where users are told apart.
    pub(super) fn open_to(&self) -> Option<Arc<User>> {
        match &*self.known() {
            Known::Everyone(user) => Some(user.clone()),
            Known::Accounts(_) => None,
        }
    }

    /// Returns what a name's password is proved by, and who that is; who is not known is none, and proves nothing.
    pub(super) fn verifier(&self, name: &str) -> Result<(Option<Arc<User>>, Verifier), ScramError> {
        if let Known::Accounts(accounts) = &*self.known()
            && let Some(account) = accounts.get(name)
            && let Some(password) = &account.password
        {
            return Ok((Some(account.user.clone()), password.clone()));
        }
        Ok((None, Verifier::of_nobody(name, &self.0.key)?))
    }

    /// Returns who sent a request.
    pub(super) async fn of_request(&self, headers: &HeaderMap) -> Result<Arc<User>, Refused> {
        let known = self.known();
        let accounts = match &*known {
            Known::Everyone(user) => return Ok(user.clone()),
            Known::Accounts(accounts) => accounts,
        };
        let said = headers.get(AUTHORIZATION).ok_or(Refused::Nothing)?.to_str().map_err(|_| Refused::Unknown)?;
        let (scheme, said) = said.split_once(' ').ok_or(Refused::Unknown)?;
        let said = said.trim();
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => {
                let said = LENIENT.decode(said).ok().and_then(|said| String::from_utf8(said).ok());
                let said = said.ok_or(Refused::Unknown)?;
                let (name, password) = said.split_once(':').ok_or(Refused::Unknown)?;
                let account = accounts.get(name);
                if account.is_some_and(|account| account.has_proved(password))
                    || self.proves(account, name, password).await
                {
                    account.map(|account| account.user.clone()).ok_or(Refused::Password)
                } else {
                    Err(Refused::Password)
                }
            }
            "bearer" => {
                let digest = sha256(said.as_bytes());
                let has_token = |one: &&Account| one.token.is_some_and(|token| is_same(&token.0, &digest));
                let account = accounts.values().find(has_token).or_else(|| self.of_pass(accounts, said));
                account.map(|account| account.user.clone()).ok_or(Refused::Token)
            }
            _ => Err(Refused::Unknown),
        }
    }

    /// Proves a password, and remembers it where it is right. Of a name that is not known it takes as long to refuse it.
    async fn proves(&self, account: Option<&Account>, name: &str, password: &str) -> bool {
        let verifier = account.and_then(|account| account.password.clone());
        let Ok(verifier) = verifier.map_or_else(|| Verifier::of_nobody(name, &self.0.key), Ok) else { return false };
        let Ok(_turn) = self.0.proving.acquire().await else { return false };
        let said = password.to_owned();
        let is_right = tokio::task::spawn_blocking(move || verifier.proves(&said)).await.unwrap_or(false);
        if let Some(account) = account.filter(|_| is_right) {
            account.proved.get_or_init(|| sha256(password.as_bytes()));
        }
        is_right
    }

    /// Returns who somebody is now: what they may do may have changed since they came in, or they may be gone.
    pub(super) fn as_of_now(&self, user: &User) -> Option<Arc<User>> {
        match &*self.known() {
            Known::Everyone(everyone) => Some(everyone.clone()),
            Known::Accounts(accounts) => accounts.get(&user.name).map(|account| account.user.clone()),
        }
    }

    /// Puts a signature behind what is handed to a client, to be known again.
    pub(super) fn seal(&self, mut what: Vec<u8>) -> Vec<u8> {
        let signature = hmac::sign(&self.0.key, &what);
        what.extend_from_slice(signature.as_ref());
        what
    }

    /// Returns what was handed to a client by this process; none of what was not.
    pub(super) fn unseal<'a>(&self, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (what, signature) =
            sealed.split_at_checked(sealed.len().checked_sub(hmac::HMAC_SHA256.digest_algorithm().output_len())?)?;
        hmac::verify(&self.0.key, what, signature).ok()?;
        Some(what)
    }

    /// Makes a token for somebody who has proved who they are: good until this process ends, or their
    /// password or token changes.
    pub(super) fn pass(&self, user: &User) -> Option<String> {
        let Known::Accounts(accounts) = &*self.known() else { return Some(URL_SAFE_NO_PAD.encode(&user.name)) };
        let account = accounts.get(&user.name)?;
        let signed = hmac::sign(&self.0.key, Self::said_of(account).as_bytes());
        Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(&user.name), URL_SAFE_NO_PAD.encode(signed)))
    }

    fn of_pass<'a>(&self, accounts: &'a BTreeMap<String, Account>, pass: &str) -> Option<&'a Account> {
        let (name, signed) = pass.split_once('.')?;
        let name = String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok()?;
        let (account, signed) = (accounts.get(&name)?, URL_SAFE_NO_PAD.decode(signed).ok()?);
        hmac::verify(&self.0.key, Self::said_of(account).as_bytes(), &signed).ok()?;
        Some(account)
    }

    fn said_of(account: &Account) -> String {
        let password = account.password.as_ref().map(Verifier::to_string).unwrap_or_default();
        let token = account.token.map(|token| token.to_string()).unwrap_or_default();
        format!("{}\n{password}\n{token}", account.user.name)
    }

    fn known(&self) -> Arc<Known> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
