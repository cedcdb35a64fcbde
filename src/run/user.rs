//! `bellwether user`: makes a password and a token for somebody, and writes what the file of users needs to know of them.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::{Context, Result};

use crate::config::users::User;
use crate::serve::accounts::TokenDigest;
use crate::serve::scram::Verifier;

#[derive(clap::Args)]
pub struct Options {
    /// Their name, as they log in with it.
    name: String,
    /// What they may read, such as `metrics` or `metric.http_*`; may be given several times. Without it, everything.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Let them end the queries of others, and have the configuration read again.
    #[arg(long)]
    admin: bool,
    /// Read the password from the first line of standard input, instead of making one.
    #[arg(long)]
    password_stdin: bool,
}

/// Writes the entry to standard output and the secrets, which are kept nowhere, to standard error.
pub fn run(options: Options) -> Result<()> {
    let Options { name, tables, admin, password_stdin } = options;
    anyhow::ensure!(!name.is_empty() && !name.contains(':'), "expected a name without a colon, got {name:?}");
    let (token, token_digest) = TokenDigest::make()?;
    let password = if password_stdin {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).context("failed to read the password")?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        TokenDigest::make()?.0
    };
    anyhow::ensure!(!password.is_empty(), "expected a password, got an empty line");
    let verifier = Verifier::of(&password)?;
    let user = User {
        name,
        password: Some(verifier.to_string()),
        token: Some(token_digest.to_string()),
        tables: Some(tables).filter(|tables| !tables.is_empty()),
        admin,
        ..User::default()
    };
    println!("{}", user.entry());
    let lines = if password_stdin { String::new() } else { format!("password: {password}\n") };
    eprintln!("{lines}token: {token}");
    if std::io::stdout().is_terminal() {
        eprintln!("(these are shown once; put the entry above into the file that serve.users names)");
    }
    Ok(())
}
