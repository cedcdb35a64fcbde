//! SQL: every `.slt` file of `tests/sql`, on a store that holds the records of `tests/sql/fixture`: one part in merged files,
//! one in small ones, one not yet committed. Each is asked of the engine itself, and over HTTP, Postgres' protocol and Flight
//! SQL. `BELLWETHER_SQL_DIR` names another folder of such files; with `BELLWETHER_BLESS` set, the files are written anew with
//! what the engine answered.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bellwether::query::format::{self, Format};
use bellwether::run::tables;
use bellwether::store::Eagerness;
use sqllogictest::{DefaultColumnType, Normalizer, Record, Runner};

use crate::fed::{self, Fed};
use crate::surfaces::{Server, Surface};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_answers_as_written() {
    let fed = store().await;
    let engine = Arc::new(tables::engine(fed.settings.query.clone(), fed.store.clone(), Vec::new()).unwrap());
    let server = Server::start(engine).await;
    let (mut statements, mut wrong) = (0, Vec::new());
    let files = files();
    for file in &files {
        let records = sqllogictest::parse_file::<DefaultColumnType>(file).unwrap();
        statements +=
            records.iter().filter(|one| matches!(one, Record::Query { .. } | Record::Statement { .. })).count();
        for surface in Surface::ALL {
            let server = server.clone();
            let mut runner = Runner::new(move || {
                let server = server.clone();
                async move { Ok(server.client(surface).await) }
            });
            runner.with_validator(is_as_written);
            if std::env::var_os("BELLWETHER_BLESS").is_some() && surface == Surface::Engine {
                let (columns, normalizer) = (sqllogictest::strict_column_validator, sqllogictest::default_normalizer);
                runner.update_test_file(file, "|", is_as_written, normalizer, columns).await.unwrap();
            } else if let Err(what) = runner.run_file_async(file).await {
                wrong.push(format!("over {surface:?}: {}", what.display(false)));
            }
        }
    }
    println!("{statements} statements of {} files, over {:?}", files.len(), Surface::ALL);
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
    let engine = tables::engine(fed.settings.query.clone(), fed.store.clone(), Vec::new()).unwrap();
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
