//! The file of users: who may ask, how they are known, and what they may read and take.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use super::unit::{Size, Span};

/// Most bytes in the file.
const BYTES_MAX: u64 = 4 << 20;

/// A user as the file says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    /// What proves the password, as Postgres keeps it too.
    pub password: Option<String>,
    /// Digest of the token.
    pub token: Option<String>,
    /// What they may read: tables, with `*` for any letters; everything where not given.
    pub tables: Option<Vec<String>>,
    #[serde(default)]
    pub admin: bool,
    pub memory_max: Option<Size>,
    pub rows_max: Option<usize>,
    pub timeout: Option<Span>,
    pub concurrency_max: Option<usize>,
}

impl User {
    /// Returns the entry of a user without limits, as it stands in the file.
    pub fn entry(&self) -> String {
        let mut entry = toml_edit::Table::new();
        entry["name"] = toml_edit::value(&self.name);
        for (key, digest) in [("password", &self.password), ("token", &self.token)] {
            if let Some(digest) = digest {
                entry[key] = toml_edit::value(digest);
            }
        }
        if let Some(tables) = &self.tables {
            entry["tables"] = toml_edit::value(tables.iter().collect::<toml_edit::Array>());
        }
        if self.admin {
            entry["admin"] = toml_edit::value(true);
        }
        format!("[[users]]\n{entry}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("failed to read {file}")]
    Read { file: String, source: std::io::Error },
    #[error("{file} has more than {BYTES_MAX} bytes")]
    TooLong { file: String },
    #[error("{file} is no file of users: {why}")]
    Form { file: String, why: String },
    #[error("{file}: the user {name:?} stands there twice")]
    Twice { file: String, name: String },
    #[error(
        "{file}: {name:?} has neither a password nor a token, and could never come in (hint: `bellwether user {name}` makes both)"
    )]
    Unknowable { file: String, name: String },
}

/// Reads a file of users.
pub fn read(path: &Path) -> Result<Vec<User>, UsersError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Users {
        #[serde(default)]
        users: Vec<User>,
    }
    let file = path.display().to_string();
    let bytes = super::file::read_at_most(path, BYTES_MAX);
    let bytes = bytes.map_err(|source| UsersError::Read { file: file.clone(), source })?;
    let bytes = bytes.ok_or_else(|| UsersError::TooLong { file: file.clone() })?;
    let form = |why: String| UsersError::Form { file: file.clone(), why };
    let text = std::str::from_utf8(&bytes).map_err(|error| form(error.to_string()))?;
    let Users { users } = toml_edit::de::from_str(text).map_err(|error| form(error.to_string()))?;
    let mut names = HashSet::new();
    for User { name, password, token, .. } in &users {
        if !names.insert(name) {
            return Err(UsersError::Twice { file, name: name.clone() });
        }
        if password.is_none() && token.is_none() {
            return Err(UsersError::Unknowable { file, name: name.clone() });
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<User>, UsersError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.toml");
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn what_is_written_is_read() {
        let plain = |name: &str| User { name: name.to_owned(), token: Some("t".to_owned()), ..User::default() };
        let limited = User {
            password: Some("p$\"\\".to_owned()),
            tables: Some(vec!["metric.http_*".to_owned(), "events".to_owned()]),
            admin: true,
            ..plain("it's \"me\"")
        };
        let written = plain("a").entry() + "\n" + &limited.entry() + "memory_max = \"1MiB\"\ntimeout = \"5s\"\n";
        let limited = User { memory_max: Some(Size::from_mib(1)), timeout: Some("5s".parse().unwrap()), ..limited };
        assert_eq!(read_text(&written).unwrap(), [plain("a"), limited]);
        assert_eq!(read_text("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("[[users]]\nname = \"a\"\n", "neither a password nor a token"),
            ("[[users]]\nname = \"a\"\ntoken = \"x\"\n[[users]]\nname = \"a\"\ntoken = \"x\"\n", "twice"),
            ("[[users]]\nname = \"a\"\ntokens = \"x\"\n", "unknown field `tokens`"),
            ("users = 1", "no file of users"),
        ] {
            let message = read_text(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
