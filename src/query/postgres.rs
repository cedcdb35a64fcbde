//! What clients of Postgres ask beside queries of people: its system catalog, the functions of its server, and statements
//! about the session.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, MemoryCatalogProvider, SchemaProvider};
use datafusion::common::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::{PgCatalogSchemaProvider, PgCatalogStaticTables};
use datafusion_pg_catalog::setup_pg_catalog;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;

use super::catalog::NAME;
use super::error::QueryError;
use super::statement;

/// The schema of the system catalog.
pub const PG_CATALOG: &str = "pg_catalog";

/// The release of Postgres whose ways are followed; clients choose by it what they ask of the catalog.
pub const VERSION: &str = "16.6";

/// Words, beside those that begin with `pg_`, by which a statement is known to be about the server.
const OF_THE_SERVER: [&str; 17] = [
    "information_schema",
    "current_setting",
    "current_schema",
    "current_schemas",
    "current_database",
    "current_catalog",
    "current_user",
    "session_user",
    "version",
    "regclass",
    "regtype",
    "regproc",
    "format_type",
    "quote_ident",
    "has_schema_privilege",
    "has_table_privilege",
    "has_database_privilege",
];

/// Plans statements about the server.
pub(super) struct Postgres {
    state: SessionState,
    parser: PostgresCompatibilityParser,
    tables: Arc<PgCatalogStaticTables>,
}

impl Postgres {
    pub fn new(base: &SessionState) -> Result<Postgres, QueryError> {
        let set_up = |source| QueryError::SetUp { source };
        let session = SessionContext::new_with_state(base.clone());
        session.register_catalog(NAME, Arc::new(MemoryCatalogProvider::new()));
        setup_pg_catalog(&session, NAME, EmptyContextProvider).map_err(|source| set_up(*source))?;
        let version = format!("PostgreSQL {VERSION} (Bellwether {})", env!("CARGO_PKG_VERSION"));
        session.register_udf(constant("version", version));
        session.register_udf(setting());
        session.register_udf(owner());
        Ok(Postgres {
            state: session.state(),
            parser: PostgresCompatibilityParser::new(),
            tables: Arc::new(PgCatalogStaticTables::try_new().map_err(set_up)?),
        })
    }

    /// Returns the state to plan with.
    pub fn state(&self, user: &str) -> SessionState {
        let session = SessionContext::new_with_state(self.state.clone());
        for name in ["session_user", "current_user"] {
            session.register_udf(constant(name, user.to_owned()));
        }
        session.state()
    }

    /// Reads a statement about the server; none where it is about the data, and is read as from anywhere else.
    pub fn parse(&self, sql: &str, bytes_max: usize) -> Result<Option<Statement>, QueryError> {
        let tokens = statement::bounded_tokens(sql, bytes_max)?;
        let is_of_server = |token: &Token| match token {
            Token::Word(word) => {
                let word = word.value.to_ascii_lowercase();
                word.starts_with("pg_") || OF_THE_SERVER.contains(&word.as_str())
            }
            _ => false,
        };
        if !tokens.iter().any(|token| is_of_server(&token.token)) {
            return Ok(None);
        }
        let statements = self.parser.parse(sql).map_err(statement::sql_error);
        let statements = statements.map_err(|source| QueryError::Parse { source })?;
        statement::one_allowed(statements.into_iter().map(|one| Statement::Statement(Box::new(one))), sql).map(Some)
    }
}

/// The numbers by which one user's clients know the tables: the same for all their queries.
#[derive(Default)]
pub(super) struct Relations {
    latest: Arc<Latest>,
    schema: OnceLock<Arc<dyn SchemaProvider>>,
}

impl fmt::Debug for Relations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relations").finish_non_exhaustive()
    }
}

impl Relations {
    /// Returns the system catalog of what is there now.
    pub fn schema(
        &self,
        postgres: &Postgres,
        now: Arc<dyn CatalogProvider>,
    ) -> Result<Arc<dyn SchemaProvider>, DataFusionError> {
        *self.latest.0.write().unwrap_or_else(PoisonError::into_inner) = Some(now);
        if let Some(schema) = self.schema.get() {
            return Ok(schema.clone());
        }
        let list: Arc<dyn CatalogProviderList> = self.latest.clone();
        let schema = PgCatalogSchemaProvider::try_new(list, postgres.tables.clone(), EmptyContextProvider)?;
        Ok(self.schema.get_or_init(|| Arc::new(schema)).clone())
    }
}

/// The catalog of whichever query asked last: the system catalog, which outlives queries, shows what it holds.
#[derive(Debug, Default)]
struct Latest(RwLock<Option<Arc<dyn CatalogProvider>>>);

impl CatalogProviderList for Latest {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| name == NAME)
    }
}

/// Returns a function without arguments that always says the same.
fn constant(name: &str, says: String) -> ScalarUDF {
    let said = Arc::new(move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(says.as_str().into())));
    create_udf(name, Vec::new(), DataType::Utf8, Volatility::Stable, said)
}

/// Returns `current_setting`: what `SHOW` says of a setting that no session changes; NULL of others.
fn setting() -> ScalarUDF {
    let said = |arguments: &[ColumnarValue]| {
        let names = ColumnarValue::values_to_arrays(arguments)?;
        let names = names[0].as_any().downcast_ref::<StringArray>();
        let names = names.ok_or_else(|| DataFusionError::Internal("current_setting takes text".to_owned()))?;
        let values = names.iter().map(|name| name.and_then(default_setting));
        Ok(ColumnarValue::Array(Arc::new(values.collect::<StringArray>())))
    };
    create_udf("current_setting", vec![DataType::Utf8], DataType::Utf8, Volatility::Stable, Arc::new(said))
}

/// Returns `pg_get_userbyid`: whatever has an owner belongs to the service.
fn owner() -> ScalarUDF {
    let said = |arguments: &[ColumnarValue]| {
        let owners = ColumnarValue::values_to_arrays(arguments)?;
        let owners = std::iter::repeat_n(NAME, owners[0].len());
        Ok(ColumnarValue::Array(Arc::new(StringArray::from_iter_values(owners))))
    };
    create_udf("pg_get_userbyid", vec![DataType::Int32], DataType::Utf8, Volatility::Stable, Arc::new(said))
}

/// Returns what a setting of the server is before a session changes it.
pub fn default_setting(name: &str) -> Option<&'static str> {
    let settings = [
        ("server_version", VERSION),
        ("server_version_num", "160006"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("search_path", "public"),
        ("timezone", "UTC"),
        ("datestyle", "ISO, YMD"),
        ("intervalstyle", "postgres"),
        ("standard_conforming_strings", "on"),
        ("integer_datetimes", "on"),
        ("transaction_isolation", "read committed"),
        ("transaction_read_only", "on"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "read committed"),
        ("extra_float_digits", "1"),
        ("statement_timeout", "0"),
        ("max_identifier_length", "63"),
        ("lc_collate", "C"),
        ("application_name", ""),
        ("is_superuser", "off"),
        ("bytea_output", "hex"),
        ("client_min_messages", "notice"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("transaction_deferrable", "off"),
        ("default_transaction_deferrable", "off"),
        ("row_security", "on"),
        ("jit", "off"),
    ];
    settings.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// What a statement of a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// For the engine to answer, or to refuse.
    Query,
    Set {
        name: String,
        value: String,
    },
    Show {
        name: String,
    },
    Begin,
    Commit,
    Rollback,
    /// Something that has no effect here; it is answered with this tag.
    Nothing(&'static str),
}

impl Command {
    /// Tells what one statement is by its first words.
    pub fn of(sql: &str) -> Command {
        let Ok(tokens) = statement::tokens(sql) else { return Command::Query };
        let mut words = words(tokens);
        let first = words.first().map(|word| word.to_ascii_uppercase()).unwrap_or_default();
        let rest = words.split_off(1.min(words.len()));
        match first.as_str() {
            "SET" => set(&rest),
            "SHOW" => match rest.iter().map(|word| word.to_ascii_lowercase()).collect::<Vec<_>>() {
                rest if rest
                    .first()
                    .is_some_and(|what| ["tables", "columns", "functions"].contains(&what.as_str())) =>
                {
                    Command::Query
                }
                rest if rest == ["time", "zone"] => Command::Show { name: "timezone".to_owned() },
                rest if rest == ["transaction", "isolation", "level"] => {
                    Command::Show { name: "transaction_isolation".to_owned() }
                }
                rest => Command::Show { name: rest.join(" ") },
            },
            "BEGIN" | "START" => Command::Begin,
            "COMMIT" | "END" => Command::Commit,
            "ROLLBACK" | "ABORT" if rest.iter().any(|word| word.eq_ignore_ascii_case("to")) => {
                Command::Nothing("ROLLBACK")
            }
            "ROLLBACK" | "ABORT" => Command::Rollback,
            "SAVEPOINT" => Command::Nothing("SAVEPOINT"),
            "RELEASE" => Command::Nothing("RELEASE"),
            "RESET" => Command::Nothing("RESET"),
            "DISCARD" => Command::Nothing("DISCARD ALL"),
            "DEALLOCATE" => Command::Nothing("DEALLOCATE"),
            "CLOSE" => Command::Nothing("CLOSE CURSOR"),
            "LISTEN" => Command::Nothing("LISTEN"),
            "UNLISTEN" => Command::Nothing("UNLISTEN"),
            _ => Command::Query,
        }
    }
}

fn set(words: &[String]) -> Command {
    let is = |at: usize, word: &str| words.get(at).is_some_and(|one| one.eq_ignore_ascii_case(word));
    let words = if is(0, "session") && !is(1, "characteristics") || is(0, "local") { &words[1..] } else { words };
    let is = |at: usize, word: &str| words.get(at).is_some_and(|one| one.eq_ignore_ascii_case(word));
    if is(0, "transaction") || is(0, "session") || is(0, "constraints") {
        return Command::Nothing("SET");
    }
    let (name, value) = if is(0, "time") && is(1, "zone") {
        ("timezone".to_owned(), &words[2..])
    } else {
        let value = if is(1, "=") || is(1, "to") { words.get(2..) } else { words.get(1..) };
        (words.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default(), value.unwrap_or_default())
    };
    Command::Set { name, value: value.join(" ") }
}

/// Returns the words of a statement without their quotes; names with dots are one.
fn words(tokens: Vec<TokenWithSpan>) -> Vec<String> {
    let (mut words, mut goes_on) = (Vec::<String>::new(), false);
    for TokenWithSpan { token, .. } in tokens {
        let word = match token {
            Token::Word(word) => word.value,
            Token::SingleQuotedString(text) | Token::Number(text, _) => text,
            Token::Eq => "=".to_owned(),
            Token::Period => ".".to_owned(),
            _ => continue,
        };
        let is_dot = word == ".";
        match words.last_mut() {
            Some(last) if is_dot || goes_on => last.push_str(&word),
            _ => words.push(word),
        }
        goes_on = is_dot;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_about_the_session_is_told_by_its_first_words() {
        let set = |name: &str, value: &str| Command::Set { name: name.to_owned(), value: value.to_owned() };
        let show = |name: &str| Command::Show { name: name.to_owned() };
        let cases = [
            ("SELECT 1", Command::Query),
            ("", Command::Query),
            ("SHOW TABLES", Command::Query),
            ("set extra_float_digits = 3", set("extra_float_digits", "3")),
            ("SET SESSION TimeZone TO 'Europe/Berlin'", set("timezone", "Europe/Berlin")),
            ("SET TIME ZONE 'UTC'", set("timezone", "UTC")),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::Nothing("SET")),
            ("SET application_name = 'it is'", set("application_name", "it is")),
            ("SET datestyle TO ISO, YMD", set("datestyle", "ISO YMD")),
            ("SET a.b = 1", set("a.b", "1")),
            ("SHOW server_version", show("server_version")),
            ("SHOW TRANSACTION ISOLATION LEVEL", show("transaction_isolation")),
            ("BEGIN READ ONLY", Command::Begin),
            ("START TRANSACTION", Command::Begin),
            ("ROLLBACK TO SAVEPOINT a", Command::Nothing("ROLLBACK")),
            ("rollback", Command::Rollback),
            ("DISCARD ALL", Command::Nothing("DISCARD ALL")),
        ];
        for (sql, expected) in cases {
            assert_eq!(Command::of(sql), expected, "{sql}");
        }
    }
}
