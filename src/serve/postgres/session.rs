//! The beginning of a connection: who it is, and what it is told of the server.

use std::collections::HashMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Sink, SinkExt as _};
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, METADATA_USER, PgWireConnectionState};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::startup::{Authentication, SecretKey};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use tokio::sync::Mutex;
use tracing::warn;

use super::Service;
use crate::query::postgres::{VERSION, default_setting};
use crate::query::{Asker, Surface, User};
use crate::serve::scram::{self, Exchange, ScramError};

/// Settings of the server that clients are told at once.
const TOLD: [&str; 12] = [
    "server_encoding",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "integer_datetimes",
    "standard_conforming_strings",
    "default_transaction_read_only",
    "is_superuser",
    "search_path",
    "bytea_output",
    "application_name",
];

/// Lets a connection in.
pub(super) struct Startup {
    service: Arc<Service>,
    id: u32,
    peer: SocketAddr,
    proving: Mutex<Proving>,
}

/// How far somebody is with proving who they are.
enum Proving {
    Nothing,
    /// They were told the salt; none where the name is not known.
    Asked(Option<Arc<User>>, Box<Exchange>),
}

impl Startup {
    pub fn new(service: Arc<Service>, id: u32, peer: SocketAddr) -> Startup {
        Startup { service, id, peer, proving: Mutex::new(Proving::Nothing) }
    }

    async fn admit<C>(&self, client: &mut C, user: Arc<User>) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let secret = i32::from_be_bytes(scram::random().map_err(|error| fatal("XX000", error.to_string()))?);
        self.service.sessions.keep(self.id, secret);
        client.set_pid_and_secret_key(self.id.cast_signed(), SecretKey::I32(secret));
        let asker = Asker { user, surface: Surface::Postgres, client: Some(self.peer), session: Some(self.id) };
        client.session_extensions().insert(asker);
        finish_authentication(client, &Parameters).await
    }

    fn refuse(&self, name: &str) -> PgWireError {
        warn!(user = name, client = %self.peer, "refused to let somebody in");
        fatal("28P01", format!("password authentication failed for user {name:?}"))
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                if self.service.tls.is_some() && !client.is_secure() && !self.peer.ip().to_canonical().is_loopback() {
                    return Err(fatal("28000", "connections from other machines must use TLS (hint: sslmode=require)"));
                }
                if let Some(everyone) = self.service.accounts.open_to() {
                    return self.admit(client, everyone).await;
                }
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                let mechanisms = Authentication::SASL(vec![scram::MECHANISM.to_owned()]);
                client.send(PgWireBackendMessage::Authentication(mechanisms)).await?;
            }
            PgWireFrontendMessage::PasswordMessageFamily(message) => {
                let name = client.metadata().get(METADATA_USER).cloned().unwrap_or_default();
                let out_of_form = |error: ScramError| fatal("08P01", error.to_string());
                let mut proving = self.proving.lock().await;
                match std::mem::replace(&mut *proving, Proving::Nothing) {
                    Proving::Nothing => {
                        let first = message.into_sasl_initial_response()?;
                        if first.auth_method != scram::MECHANISM {
                            return Err(fatal(
                                "28000",
                                format!("expected {}, came {}", scram::MECHANISM, first.auth_method),
                            ));
                        }
                        let (user, verifier) = self.service.accounts.verifier(&name).map_err(out_of_form)?;
                        let first = first.data.unwrap_or_default();
                        let (said, exchange) = verifier.exchange(&first).map_err(out_of_form)?;
                        *proving = Proving::Asked(user, Box::new(exchange));
                        let said = Authentication::SASLContinue(said.into());
                        client.send(PgWireBackendMessage::Authentication(said)).await?;
                    }
                    Proving::Asked(user, exchange) => {
                        let last = message.into_sasl_response()?;
                        let said = match exchange.finish(&last.data) {
                            Err(ScramError::Password) => return Err(self.refuse(&name)),
                            said => said.map_err(out_of_form)?,
                        };
                        let user = user.ok_or_else(|| self.refuse(&name))?;
                        let said = Authentication::SASLFinal(said.into());
                        client.send(PgWireBackendMessage::Authentication(said)).await?;
                        self.admit(client, user).await?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What a client is told of the server when it comes in.
struct Parameters;

impl ServerParameterProvider for Parameters {
    fn server_parameters<C: ClientInfo>(&self, client: &C) -> Option<HashMap<String, String>> {
        let told = TOLD.iter().map(|name| ((*name).to_owned(), setting(client, name).unwrap_or_default()));
        let version = format!("{VERSION} (Bellwether {})", env!("CARGO_PKG_VERSION"));
        Some(told.chain([("server_version".to_owned(), version)]).collect())
    }
}

/// Settings that a session cannot change: how times and texts are written.
pub(super) const FIXED: [&str; 5] = ["timezone", "client_encoding", "datestyle", "intervalstyle", "bytea_output"];

/// Returns a setting of a session: what it was set to, or the server's.
pub(super) fn setting<C: ClientInfo>(client: &C, name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let of_session = || client.metadata().iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
    let of_session = if FIXED.contains(&name.as_str()) { None } else { of_session().map(|(_, value)| value.clone()) };
    of_session.or_else(|| default_setting(&name).map(str::to_owned))
}

/// Returns how long a session lets its queries run, where it says.
pub(super) fn timeout<C: ClientInfo>(client: &C) -> Option<Duration> {
    let text = setting(client, "statement_timeout")?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|&number| number > 0)?;
    let milliseconds = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.saturating_mul(milliseconds)))
}

fn fatal(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message.into())))
}
