//! SQL: every `.slt` file of `tests/sql`, on a store that holds the records of `tests/sql/fixture`: one part in merged files,
//! one in small ones, one not yet committed. `BELLWETHER_SQL_DIR` names another folder of such files; with
//! `BELLWETHER_BLESS` set, the files are written anew with what was answered.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, DurationFormat, FormatOptions};
use async_trait::async_trait;
use bellwether::query::format::{self, Format};
use bellwether::query::{Engine, QueryError};
use bellwether::run::tables;
use bellwether::store::Eagerness;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Normalizer, Record, Runner};

use crate::fed::{self, Fed};

#[tokio::test]
async fn every_statement_answers_as_written() {
    let fed = store().await;
    let engine = Arc::new(tables::engine(fed.settings.query.clone(), fed.store.clone()).unwrap());
    let (mut statements, mut wrong) = (0, Vec::new());
    let files = files();
    for file in &files {
        let records = sqllogictest::parse_file::<DefaultColumnType>(file).unwrap();
        statements +=
            records.iter().filter(|one| matches!(one, Record::Query { .. } | Record::Statement { .. })).count();
        let mut runner = Runner::new(|| async { Ok(InProcess(engine.clone())) });
        runner.with_validator(is_as_written);
        if std::env::var_os("BELLWETHER_BLESS").is_some() {
            let (columns, normalizer) = (sqllogictest::strict_column_validator, sqllogictest::default_normalizer);
            runner.update_test_file(file, "|", is_as_written, normalizer, columns).await.unwrap();
        } else if let Err(what) = runner.run_file_async(file).await {
            wrong.push(what.display(false).to_string());
        }
    }
    println!("{statements} statements of {} files", files.len());
    assert!(wrong.is_empty(), "{} files differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Cells stand between bars, so that one may hold spaces.
fn is_as_written(_: Normalizer, answered: &[Vec<String>], written: &[String]) -> bool {
    answered.iter().map(|row| row.join("|")).eq(written.iter().cloned())
}

/// The page for users: every statement on it stands before what it answers.
#[tokio::test]
async fn the_examples_of_the_page_answer_as_written() {
    let fed = store().await;
    let engine = tables::engine(fed.settings.query.clone(), fed.store.clone()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/queries.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (mut anew, mut examples, mut rest) = (String::new(), 0, page.as_str());
    while let Some((before, from_statement)) = rest.split_once("```sql\n") {
        let (statement, after) = from_statement.split_once("```\n").unwrap();
        let (_, after) = after.strip_prefix("```text\n").expect("an answer follows").split_once("```\n").unwrap();
        let answer = engine.run(statement).await.unwrap_or_else(|error| panic!("{statement}{}", error.message()));
        let (schema, mut table) = (answer.schema.clone(), Vec::new());
        let rows = answer.collect().await.unwrap_or_else(|error| panic!("{statement}{}", error.message()));
        format::write(Format::Table, &schema, &rows, &mut table).unwrap();
        anew += &format!("{before}```sql\n{statement}```\n```text\n{}```\n", String::from_utf8(table).unwrap());
        (examples, rest) = (examples + 1, after);
    }
    anew += rest;
    println!("{examples} examples");
    assert!(examples >= 8, "{} has {examples} examples", path.display());
    if std::env::var_os("BELLWETHER_BLESS").is_some() {
        std::fs::write(path, anew).unwrap();
    } else {
        assert_same_lines(&page, &anew);
    }
}

/// Shows the first line that differs: the whole page would not be read.
fn assert_same_lines(page: &str, anew: &str) {
    for (number, (written, answered)) in page.lines().zip(anew.lines()).enumerate() {
        assert_eq!(written, answered, "docs/queries.md:{}", number + 1);
    }
    assert_eq!(page.lines().count(), anew.lines().count(), "docs/queries.md");
}

fn files() -> Vec<PathBuf> {
    let root = std::env::var_os("BELLWETHER_SQL_DIR").map_or_else(|| here().to_owned(), PathBuf::from);
    let entries = std::fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    assert!(!files.is_empty(), "{} holds no .slt file", root.display());
    files
}

fn here() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sql"))
}

/// Returns a store with the records of the fixture.
async fn store() -> Fed {
    let folder = here().join("fixture");
    let mut fed = Fed::none_of(&folder, fed::definitions(&folder).unwrap()).await.unwrap();
    for part in [0.2, 0.4, 0.7] {
        fed.feed(part).await.unwrap();
        fed.store.commit().await.unwrap();
        if part == 0.4 {
            for due in fed.store.due(Eagerness::Thorough) {
                fed.store.merge(&due).await.unwrap().unwrap();
            }
        }
    }
    fed.feed(1.0).await.unwrap();
    fed.end().await.unwrap();
    fed
}

/// Statements go straight to the engine.
struct InProcess(Arc<Engine>);

#[async_trait]
impl AsyncDB for InProcess {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        let answer = self.0.run(sql).await?;
        let types = answer.schema.fields().iter().map(|field| column_type(field.data_type())).collect();
        let batches = answer.collect().await?;
        Ok(DBOutput::Rows { types, rows: batches.iter().flat_map(cells).collect() })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "bellwether"
    }
}

/// An error as whoever sent the statement reads it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl From<QueryError> for Refused {
    fn from(error: QueryError) -> Self {
        Refused(error.message())
    }
}

fn column_type(of: &DataType) -> DefaultColumnType {
    match of {
        of if of.is_integer() => DefaultColumnType::Integer,
        of if of.is_numeric() => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Text,
    }
}

fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default()
        .with_null("NULL")
        .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"))
        .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"))
        .with_duration_format(DurationFormat::Pretty);
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
    let cell = |column: &ArrayFormatter<'_>, row: usize| match column.value(row).to_string() {
        empty if empty.is_empty() => "(empty)".to_owned(),
        text => text,
    };
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect()
}
