//! Which statements may run: exactly one, a query or a question about the tables, and of bounded size and depth.
//!
//! This is the first of two fences; the second is the plan, checked by `SQLOptions`, since a query can hide a write
//! (`SELECT … INTO`). Nothing here looks at tables.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{Statement as SqlStatement, visit_statements};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::error::QueryError;

/// Words and operators in a statement, literals and commas not counted, so that long lists of values may pass.
///
/// A chain such as `1 + 1 + …` or `x::int::int…` nests one level per operator without recursion in the parser, and so
/// passes its limit; every later stage, down to freeing the tree, recurses over it. This bound keeps that depth within
/// the stack of the query threads, and the planner, which takes more than linear time over it, within seconds.
pub const PARTS_MAX: usize = 2_000;

/// Levels of parentheses, subqueries and function calls.
pub const NESTING_MAX: usize = 50;

/// What a query is that holds another statement.
pub const WRITES_INSIDE: &str = "a statement that writes inside a query";

/// Reads a statement and checks that it may run.
pub fn parse(sql: &str, bytes_max: usize) -> Result<Statement, QueryError> {
    let dialect = GenericDialect {};
    let statements = DFParserBuilder::new(bounded_tokens(sql, bytes_max)?)
        .with_dialect(&dialect)
        .with_recursion_limit(NESTING_MAX)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(parse_error)?;
    one_allowed(statements.into_iter(), sql)
}

/// Cuts a statement into its words, unless it is too long.
pub(super) fn bounded_tokens(sql: &str, bytes_max: usize) -> Result<Vec<TokenWithSpan>, QueryError> {
    if sql.len() > bytes_max {
        return Err(QueryError::StatementBytes { bytes: sql.len(), max: bytes_max });
    }
    let tokens = tokens(sql)?;
    let parts = tokens.iter().filter(|token| is_part(&token.token)).count();
    if parts > PARTS_MAX {
        return Err(QueryError::StatementParts { parts, max: PARTS_MAX });
    }
    Ok(tokens)
}

/// Returns the one statement that a text holds, where it may run.
pub(super) fn one_allowed(
    mut statements: impl ExactSizeIterator<Item = Statement>,
    sql: &str,
) -> Result<Statement, QueryError> {
    match (statements.next(), statements.len()) {
        (None, _) => Err(QueryError::Empty),
        (Some(statement), 0) if is_allowed(&statement) => Ok(statement),
        (Some(Statement::Statement(inner)), 0) if matches!(*inner, SqlStatement::Query(_)) => {
            Err(QueryError::Refused { kind: WRITES_INSIDE.to_owned() })
        }
        (Some(_), 0) => Err(QueryError::Refused { kind: first_word(sql) }),
        (Some(_), more) => Err(QueryError::Several { count: more + 1 }),
    }
}

/// Cuts a text at the semicolons that end statements; what is empty is left out.
///
/// # Errors
/// Quotes or comments that do not end.
pub fn split(text: &str) -> Result<Vec<String>, QueryError> {
    let (mut statements, mut start, mut says_something) = (Vec::new(), 0, false);
    let mut cursor = Cursor { rest: text.char_indices(), at: Location { line: 1, column: 1 } };
    for token in tokens(text)?.into_iter().chain([TokenWithSpan::wrap(Token::EOF)]) {
        let end = match token.token {
            Token::SemiColon => cursor.offset(token.span.start),
            Token::EOF => text.len(),
            Token::Whitespace(_) => continue,
            _ => {
                says_something = true;
                continue;
            }
        };
        if says_something && let Some(statement) = text.get(start..end) {
            statements.push(statement.trim().to_owned());
        }
        (start, says_something) = (end + 1, false);
    }
    Ok(statements)
}

/// Goes through a text from one place of the tokenizer's to the next: lines and characters, both from one.
struct Cursor<'a> {
    rest: std::str::CharIndices<'a>,
    at: Location,
}

impl Cursor<'_> {
    /// Returns the byte at a place that is not before the one it was at.
    fn offset(&mut self, of: Location) -> usize {
        while self.at < of
            && let Some((_, char)) = self.rest.next()
        {
            self.at = match char {
                '\n' => Location { line: self.at.line + 1, column: 1 },
                _ => Location { line: self.at.line, column: self.at.column + 1 },
            };
        }
        self.rest.offset()
    }
}

/// Tells whether the last statement of a text is ended by a semicolon, whatever space and comments follow.
pub fn is_ended(text: &str) -> bool {
    let tokens = tokens(text).unwrap_or_default();
    let last = tokens.iter().rfind(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
    last.is_none_or(|token| token.token == Token::SemiColon)
}

pub(super) fn tokens(text: &str) -> Result<Vec<TokenWithSpan>, QueryError> {
    Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|source| QueryError::Parse { source: sql_error(source.into()) })
}

fn is_part(token: &Token) -> bool {
    !matches!(
        token,
        Token::Whitespace(_)
            | Token::Comma
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::SemiColon
            | Token::EOF
    )
}

fn is_allowed(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(inner) => is_allowed_sql(inner),
        Statement::Explain(explain) => is_allowed(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    }
}

/// A list of what may pass, never of what may not: what the parser learns next is refused until it is named here.
fn is_allowed_sql(statement: &SqlStatement) -> bool {
    match statement {
        SqlStatement::Query(_) => is_query_throughout(statement),
        SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ExplainTable { .. } => true,
        SqlStatement::Explain { statement, .. } => is_allowed_sql(statement),
        _ => false,
    }
}

/// A query may hold other statements, as `WITH t AS (DELETE …)`.
fn is_query_throughout(statement: &SqlStatement) -> bool {
    let is_query = |inner: &SqlStatement| match inner {
        SqlStatement::Query(_) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    visit_statements(statement, is_query).is_continue()
}

pub(super) fn parse_error(source: DataFusionError) -> QueryError {
    match source.find_root() {
        DataFusionError::SQL(error, _) if matches!(**error, ParserError::RecursionLimitExceeded) => {
            QueryError::Nesting { max: NESTING_MAX }
        }
        _ => QueryError::Parse { source },
    }
}

pub(super) fn sql_error(error: ParserError) -> DataFusionError {
    DataFusionError::SQL(Box::new(error), None)
}

fn first_word(sql: &str) -> String {
    const LETTERS_MAX: usize = 20;
    sql.split_whitespace().next().unwrap_or_default().chars().take(LETTERS_MAX).collect::<String>().to_uppercase()
}

#[cfg(test)]
mod tests;
