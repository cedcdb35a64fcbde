//! Who may ask: from the file of users to accounts. The file, and the certificate, are read again when they change.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::users;
use crate::query::{Engine, Grant, User};
use crate::serve::accounts::{Account, Accounts};
use crate::serve::tls::Tls;
use crate::serve::{self};

/// How often it is looked whether a file was changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Lets people in, and keeps up with who they are.
pub struct Admission {
    engine: Arc<Engine>,
    users: Option<PathBuf>,
    pub accounts: Accounts,
    /// Those who were admitted, with what they were granted: who is granted the same again stays, with what runs of theirs.
    admitted: Mutex<HashMap<String, (Grant, Arc<User>)>>,
}

impl Admission {
    /// Reads who may ask.
    pub fn new(engine: Arc<Engine>, users: Option<PathBuf>) -> Result<Admission> {
        let accounts = Accounts::everyone(engine.everyone())?;
        let admission = Admission { engine, users, accounts, admitted: Mutex::default() };
        admission.read_users()?;
        Ok(admission)
    }

    fn read_users(&self) -> Result<()> {
        let Some(path) = &self.users else { return Ok(()) };
        let users = users::read(path)?;
        let accounts = users.into_iter().map(|user| {
            let name = user.name.clone();
            self.account(user).with_context(|| format!("{}: the user {name:?}", path.display()))
        });
        let accounts = accounts.collect::<Result<Vec<_>>>()?;
        info!(users = accounts.len(), file = %path.display(), "users are known");
        self.accounts.set(accounts);
        Ok(())
    }

    fn account(&self, user: users::User) -> Result<Account> {
        let password = user.password.as_deref().map(str::parse).transpose()?;
        let token = user.token.as_deref().map(str::parse).transpose().map_err(anyhow::Error::msg)?;
        let grant = Grant {
            name: user.name,
            tables: user.tables,
            memory_bytes_max: user.memory_max.map(|size| size.bytes() as usize),
            rows_max: user.rows_max,
            timeout: user.timeout.map(|span| span.get()),
            concurrency_max: user.concurrency_max,
            is_admin: user.admin,
        };
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let user = match admitted.get(&grant.name) {
            Some((same, user)) if *same == grant => user.clone(),
            _ => {
                let user = self.engine.admit(grant.clone())?;
                admitted.insert(grant.name.clone(), (grant, user.clone()));
                user
            }
        };
        Ok(Account::new(user, password, token))
    }

    /// Reads users and certificate again whenever one of their files changes, until it is aborted. What cannot be read
    /// changes nothing.
    pub fn keep_up(self, tls: Option<Tls>) -> JoinHandle<()> {
        let of_tls: Vec<PathBuf> = tls.iter().flat_map(Tls::files).map(Path::to_path_buf).collect();
        let of_users: Vec<PathBuf> = self.users.iter().cloned().collect();
        let (mut seen_users, mut seen_tls) = (stamps(&of_users), stamps(&of_tls));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if has_changed(&mut seen_users, &of_users)
                    && let Err(why) = self.read_users()
                {
                    error!(error = format!("{why:#}"), "the users are known as they were before");
                }
                if has_changed(&mut seen_tls, &of_tls)
                    && let Some(tls) = &tls
                {
                    match tls.reread() {
                        Ok(()) => info!("the certificate was read again"),
                        Err(why) => error!(error = %why, "the certificate is shown that was before"),
                    }
                }
            }
        })
    }
}

/// Warns where other machines can ask, and nothing tells who they are or keeps others from listening.
pub fn warn_of_openness(settings: &serve::Settings, users: Option<&Path>) {
    let reachable = [Some(settings.listen), settings.postgres].into_iter().flatten().find(|at| !at.ip().is_loopback());
    let Some(address) = reachable else { return };
    if users.is_none() {
        warn!(%address, "everyone who reaches this address may read everything (hint: set serve.users)");
    } else if settings.tls.is_none() {
        warn!(%address, "passwords and answers cross the network as plain text (hint: set serve.tls_certificate and serve.tls_key)");
    }
}

type Stamp = Option<(SystemTime, u64)>;

/// Returns when files were written last; none of one that is not there.
fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let about = std::fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    files.iter().map(stamp).collect()
}

fn has_changed(seen: &mut Vec<Stamp>, files: &[PathBuf]) -> bool {
    let now = stamps(files);
    // A file that is just being replaced is there again soon.
    now.iter().all(Option::is_some) && std::mem::replace(seen, now.clone()) != now
}
