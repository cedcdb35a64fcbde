//! What clients of Postgres ask beside queries of people: its system catalog, the functions of its server, and statements
//! about the session.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

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

use super::catalog::{INFORMATION_SCHEMA, NAME};
use super::error::QueryError;
use super::statement;

/// The schema of the system catalog.
pub const PG_CATALOG: &str = "pg_catalog";

/// The release of Postgres whose ways are followed; clients choose by it what they ask of the catalog.
pub const VERSION: &str = "16.6";

/// Functions of the server, beside those that begin with `pg_`.
const FUNCTIONS: [&str; 14] = [
    "current_setting",
    "current_schema",
    "current_schemas",
    "current_database",
    "session_user",
    "version",
    "format_type",
    "quote_ident",
    "has_schema_privilege",
    "has_table_privilege",
    "has_database_privilege",
    "has_any_column_privilege",
    "obj_description",
    "col_description",
];

/// What Postgres calls functions without parentheses.
const WORDS: [&str; 5] = ["current_user", "session_user", "current_catalog", "current_schema", "current_role"];

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
        let mut tokens: Vec<Token> =
            statement::bounded_tokens(sql, bytes_max)?.into_iter().map(|one| one.token).collect();
        tokens.retain(|token| !matches!(token, Token::Whitespace(_)));
        if !(0..tokens.len()).any(|at| is_of_server(&tokens, at)) {
            return Ok(None);
        }
        let statements = self.parser.parse(sql).map_err(statement::sql_error);
        let statements = statements.map_err(|source| QueryError::Parse { source })?;
        statement::one_allowed(statements.into_iter().map(|one| Statement::Statement(Box::new(one))), sql).map(Some)
    }
}

/// Returns whether a word shows that its statement is about the server: a statement about the data is not to be rewritten,
/// whatever its columns and metrics are called.
fn is_of_server(tokens: &[Token], at: usize) -> bool {
    let Some(Token::Word(word)) = tokens.get(at) else { return false };
    let (before, after) = (at.checked_sub(1).and_then(|before| tokens.get(before)), tokens.get(at + 1));
    let name = word.value.to_ascii_lowercase();
    let is_pg = name.starts_with("pg_");
    match (before, after) {
        (_, Some(Token::Period)) => name == PG_CATALOG || name == INFORMATION_SCHEMA,
        (Some(Token::Period), _) => false,
        (_, Some(Token::LParen)) => is_pg || FUNCTIONS.contains(&name.as_str()),
        (Some(Token::DoubleColon), _) => name.starts_with("reg"),
        (Some(Token::Word(from)), _) if ["from", "join"].iter().any(|word| from.value.eq_ignore_ascii_case(word)) => {
            is_pg
        }
        (Some(Token::Comma), _) if is_pg => true,
        _ => word.quote_style.is_none() && WORDS.contains(&name.as_str()),
    }
}

/// The numbers by which one user's clients know the tables: the same for all their queries.
#[derive(Default)]
pub(super) struct Relations {
    running: Arc<Running>,
    schema: OnceLock<Arc<dyn SchemaProvider>>,
}

impl fmt::Debug for Relations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relations").finish_non_exhaustive()
    }
}

impl Relations {
    /// Has the system catalog show what is there now, for as long as it is there.
    pub fn show(&self, now: Weak<dyn CatalogProvider>) {
        let mut running = self.running.0.write().unwrap_or_else(PoisonError::into_inner);
        running.retain(|catalog| catalog.strong_count() > 0);
        running.push(now);
    }

    /// Returns the system catalog.
    pub fn schema(&self, postgres: &Postgres) -> Result<Arc<dyn SchemaProvider>, DataFusionError> {
        if let Some(schema) = self.schema.get() {
            return Ok(schema.clone());
        }
        let list: Arc<dyn CatalogProviderList> = self.running.clone();
        let schema = PgCatalogSchemaProvider::try_new(list, postgres.tables.clone(), EmptyContextProvider)?;
        Ok(self.schema.get_or_init(|| Arc::new(schema)).clone())
    }
}

/// The catalogs of the queries that run: the system catalog, which outlives them, shows what the newest holds. Rows are held
/// by the queries alone.
#[derive(Debug, Default)]
struct Running(RwLock<Vec<Weak<dyn CatalogProvider>>>);

impl CatalogProviderList for Running {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        let running = self.0.read().unwrap_or_else(PoisonError::into_inner);
        running.iter().rev().filter(|_| name == NAME).find_map(Weak::upgrade)
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
    /// Takes back what was set; everything where no name is said.
    Reset {
        name: Option<String>,
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
            "RESET" => Command::Reset { name: rest.first().filter(|name| !name.eq_ignore_ascii_case("all")).cloned() },
            "DISCARD" => Command::Reset { name: None },
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
    let words = if is(0, "session") && !is(1, "characteristics") { &words[1..] } else { words };
    let is = |at: usize, word: &str| words.get(at).is_some_and(|one| one.eq_ignore_ascii_case(word));
    // What is set for a transaction alone would end with it, and there are none.
    if is(0, "transaction") || is(0, "session") || is(0, "constraints") || is(0, "local") {
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
            Token::Minus => "-".to_owned(),
            _ => continue,
        };
        let (is_dot, is_minus) = (word == ".", word == "-");
        match words.last_mut() {
            Some(last) if is_dot || goes_on => last.push_str(&word),
            _ => words.push(word),
        }
        goes_on = is_dot || is_minus;
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
            ("DISCARD ALL", Command::Reset { name: None }),
            ("RESET statement_timeout", Command::Reset { name: Some("statement_timeout".to_owned()) }),
            ("SET LOCAL statement_timeout = 5", Command::Nothing("SET")),
            ("SET statement_timeout = -1", set("statement_timeout", "-1")),
        ];
        for (sql, expected) in cases {
            assert_eq!(Command::of(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_is_about_the_data_is_told_from_what_is_about_the_server() {
        let is_of_server = |sql: &str| {
            let tokens = statement::tokens(sql).unwrap().into_iter().map(|one| one.token);
            let tokens: Vec<Token> = tokens.filter(|token| !matches!(token, Token::Whitespace(_))).collect();
            (0..tokens.len()).any(|at| super::is_of_server(&tokens, at))
        };
        for sql in [
            "SELECT * FROM pg_catalog.pg_class",
            "SELECT 1 FROM a, pg_class c",
            "SELECT 1 FROM x JOIN pg_type t ON true",
            "SELECT version()",
            "SELECT current_user",
            "SELECT 'a'::regclass",
            "SELECT count(*) FROM information_schema.tables",
        ] {
            assert!(is_of_server(sql), "{sql}");
        }
        for sql in [
            "SELECT version FROM metric.build_info",
            "SELECT * FROM metric.pg_up",
            "SELECT b.version, b.pg_up FROM t b",
            "SELECT 'pg_catalog.pg_class', \"current_user\" FROM t",
        ] {
            assert!(!is_of_server(sql), "{sql}");
        }
    }
}
