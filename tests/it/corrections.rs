//! Corrections, over every golden view that can be corrected: fed record by record through the core into a store, and
//! corrected there, each view must read as if no row had been late.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use bellwether::model::time::EventTime;
use bellwether::query;
use bellwether::run::corrector;
use bellwether::stream::definition::{Definition, family};
use bellwether::stream::window::Window;
use serde_json::Value;

use crate::fed::{self, Fed};
use crate::views;

#[tokio::test]
async fn corrected_views_read_as_if_no_row_had_been_late() {
    let (mut corrected, mut changed, mut wrong) = (0, 0, Vec::new());
    for folder in views::folders() {
        match check(&folder).await {
            Ok(views) => {
                corrected += views.len();
                changed += views.iter().filter(|changed| **changed).count();
            }
            Err(what) => wrong.push(format!("{}: {what}", folder.file_name().unwrap().to_string_lossy())),
        }
    }
    println!("{corrected} views corrected, of which {changed} read otherwise before");
    assert!(wrong.is_empty(), "{} folders differ:\n{}", wrong.len(), wrong.join("\n"));
    // Where nothing is late, there is nothing to correct: that would prove nothing.
    assert!(changed >= 15, "only {changed} views have rows that came too late");
}

#[tokio::test]
async fn what_a_view_emitted_before_it_began_anew_stays() {
    let folder = views::folders().into_iter().find(|folder| folder.ends_with("tumble_late_rows")).unwrap();
    for (begins_at, stays) in [(EventTime::from_micros(0), false), (EventTime::MAX, true)] {
        let mut fed = fed(&folder).await.unwrap();
        finish(&mut fed).await.unwrap();
        for view in fed.corrected() {
            corrector::begins(&fed.store, view, begins_at).unwrap();
            fed.store.commit().await.unwrap();
            assert_eq!(fed.corrector().correct(view).await.unwrap() == 0, stays, "{}", view.name);
        }
    }
}

/// One late row of a window after another, each found by another turn: none may pass for one that was answered.
#[tokio::test]
async fn views_corrected_while_rows_come_read_the_same() {
    let (mut corrected, mut wrong) = (0, Vec::new());
    for folder in views::folders() {
        match check_in_parts(&folder, 12).await {
            Ok(windows) => corrected += windows,
            Err(what) => wrong.push(format!("{}: {what}", folder.file_name().unwrap().to_string_lossy())),
        }
    }
    println!("{corrected} windows corrected");
    assert!(wrong.is_empty(), "{} folders differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Runs one folder; tells of each view that can be corrected whether it read otherwise before it was.
async fn check(folder: &Path) -> Result<Vec<bool>, String> {
    let expected = expected(folder).await?;
    let mut fed = fed(folder).await?;
    finish(&mut fed).await?;
    let (mut corrector, queries) = (fed.corrector(), queries(&fed));
    let mut changed = Vec::new();
    for view in fed.corrected() {
        let wanted = views::rows_as_json(expected.get(&view.name).map_or(&[], Vec::as_slice));
        let windows = corrector.correct(view).await.map_err(fed::said)?;
        let compared = |rows: Vec<Value>| views::compare(wanted.clone(), rows, &views::tolerances(folder));
        compared(read(&queries, &view.name).await).map_err(|what| format!("{}: {what}", view.name))?;
        let emitted = compared(read(&queries, &format!("{}_emitted", view.name)).await);
        if windows == 0 {
            emitted.clone().map_err(|what| format!("{}, not corrected: {what}", view.name))?;
        }
        changed.push(emitted.is_err());
        fed.store.commit().await.map_err(|error| error.to_string())?;
        // Another process that knows nothing of this finds nothing to do.
        assert_eq!(fed.corrector().correct(view).await.map_err(fed::said)?, 0, "{} is corrected twice", view.name);
    }
    Ok(changed)
}

/// Runs one folder, corrected after each part of its records; tells how many windows were.
async fn check_in_parts(folder: &Path, parts: u32) -> Result<usize, String> {
    let expected = expected(folder).await?;
    let mut fed = fed(folder).await?;
    let (mut corrector, queries) = (fed.corrector(), queries(&fed));
    let mut windows = 0;
    for part in 1..=parts {
        fed.feed(f64::from(part) / f64::from(parts)).await.map_err(fed::said)?;
        fed.store.commit().await.map_err(|error| error.to_string())?;
        for view in fed.corrected() {
            windows += corrector.correct(view).await.map_err(fed::said)?;
        }
    }
    finish(&mut fed).await?;
    for view in fed.corrected() {
        windows += corrector.correct(view).await.map_err(fed::said)?;
        let wanted = views::rows_as_json(expected.get(&view.name).map_or(&[], Vec::as_slice));
        views::compare(wanted, read(&queries, &view.name).await, &views::tolerances(folder))
            .map_err(|what| format!("{}: {what}", view.name))?;
    }
    Ok(windows)
}

/// Returns what each view of a folder emits where it waits for every row.
async fn expected(folder: &Path) -> Result<BTreeMap<Arc<str>, Vec<RecordBatch>>, String> {
    let mut patient = fed::definitions(folder)?;
    patient.views.iter_mut().for_each(|view| view.lateness = fed::FOREVER);
    let mut expected: BTreeMap<Arc<str>, Vec<RecordBatch>> = BTreeMap::new();
    for emission in views::run(folder, patient).await? {
        expected.entry(emission.view).or_default().push(emission.rows);
    }
    Ok(expected)
}

/// Makes a store for a golden folder; its views that can be are corrected.
async fn fed(folder: &Path) -> Result<Fed, String> {
    let mut definitions = fed::definitions(folder)?;
    let before = definitions.views.clone();
    definitions.views.iter_mut().filter(|view| has_no_session(view, &before)).for_each(|view| {
        view.correct_every = Some(Duration::from_secs(1));
    });
    Fed::none_of(folder, definitions).await
}

/// Feeds what is left, and closes every window.
async fn finish(fed: &mut Fed) -> Result<(), String> {
    fed.feed(1.0).await.map_err(fed::said)?;
    fed.end().await.map_err(fed::said)?;
    fed.store.commit().await.map_err(|error| error.to_string())?;
    Ok(())
}

fn queries(fed: &Fed) -> query::Engine {
    let (limits, store) = (fed.settings.query.clone(), fed.store.clone());
    query::Engine::new(limits, Arc::new(move || store.pin().into()), Vec::new()).unwrap()
}

fn has_no_session(view: &Definition, views: &[Definition]) -> bool {
    let mut all = family(views, &view.reads);
    all.push(view);
    all.iter().all(|view| matches!(view.window, Window::Hop { .. }))
}

async fn read(queries: &query::Engine, table: &str) -> Vec<Value> {
    let answer = queries.run(&format!("SELECT * FROM {table}")).await.unwrap();
    views::rows_as_json(&answer.collect().await.unwrap())
}
