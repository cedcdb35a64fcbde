//! A reload at any moment: views that stay say what they would have said, those that change begin at a window's border.

use proptest::prelude::*;

use super::*;
use crate::stream::adopt::Adopted;

fn tumble(name: &str, seconds: u32, aggregate: &str, options: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW {name} WITH (lateness = '10s'{options}) AS \
         SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, {aggregate} AS total FROM metrics \
         WHERE name = 'm' GROUP BY tumble(ts, INTERVAL '{seconds} seconds'), labels['service']"
    )
}

fn over(name: &str, input: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW {name} AS SELECT window_start, window_end, service, sum(n) AS n, max(total) AS total \
         FROM {input} GROUP BY tumble(ts, INTERVAL '1 minute'), service"
    )
}

/// Views by name: before the reload and after it.
fn views() -> Vec<(&'static str, Option<String>, Option<String>)> {
    let kept = |sql: String| (Some(sql.clone()), Some(sql));
    let session = "CREATE MATERIALIZED VIEW session WITH (lateness = '10s') AS SELECT window_start, window_end, \
                   labels['service'] AS service, count(*) AS n, sum(value) AS total FROM metrics \
                   GROUP BY session(ts, INTERVAL '15 seconds'), labels['service']";
    let lag = "CREATE MATERIALIZED VIEW lag WITH (lateness = '10s') AS SELECT window_start, window_end, \
               labels['service'] AS service, count(*) AS n, sum(value) - coalesce(lag(sum(value)) OVER (PARTITION BY \
               labels['service'] ORDER BY window_start), 0) AS total FROM metrics \
               GROUP BY tumble(ts, INTERVAL '20 seconds'), labels['service']";
    let both = "CREATE MATERIALIZED VIEW both AS SELECT a.window_start, a.window_end, a.service, b.n, a.total \
                FROM alone a JOIN shared b ON a.window_end = b.window_end AND a.service = b.service";
    let with = |name, (old, new)| (name, old, new);
    vec![
        with(
            "alone",
            kept(tumble("alone", 10, "sum(value) + 1", "").replace("name = 'm'", "name = 'm' AND value > -50")),
        ),
        with("shared", kept(tumble("shared", 10, "sum(value)", "").replace("'m'", "'m' AND value < 1000"))),
        with("mate", kept(tumble("mate", 20, "sum(value)", ""))),
        with("over_kept", kept(over("over_kept", "shared"))),
        with("session", kept(session.to_owned())),
        with("lag", kept(lag.to_owned())),
        with("both", kept(both.to_owned())),
        with("gone", (Some(tumble("gone", 60, "sum(value)", "").replace("'m'", "'other'")), None)),
        with("width", (Some(tumble("width", 10, "max(value)", "")), Some(tumble("width", 30, "min(value)", "")))),
        with("over_changed", kept(over("over_changed", "width"))),
    ]
}

fn reload(running: &mut Running, views: &[String], stored: &[(u32, i64, f64)], emitted: &[Emission]) -> Adopted {
    let old = std::mem::replace(&mut running.engine, engine_of(views));
    let adopted = running.engine.adopt(old, &running.interner).unwrap();
    for refill in running.engine.refills() {
        let of = emitted.iter().filter(|one| one.view == refill.from_view && one.window.start >= refill.needs_from);
        of.for_each(|one| running.engine.refill(&refill, one).unwrap());
    }
    running.rebuild(stored, &mut LateBefore::default());
    adopted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_reload_keeps_what_stays_and_begins_anew_at_a_border(
        steps in prop::collection::vec((0u32..5, 0i64..9, 0i64..9, -100i64..100), 20..200),
        batch in 1usize..30,
        at in 0usize..8,
    ) {
        let rows = rows_of(&steps);
        // The last series is seen for the first time after the reload.
        let rows = |from: usize, to: usize| -> Vec<(u32, i64, f64)> {
            let known = |(number, &(series, ts, value)): (usize, &_)| (if number < at * batch { series % 4 } else { series }, ts, value);
            rows.iter().enumerate().map(known).skip(from).take(to.saturating_sub(from)).collect()
        };
        let total = steps.len();
        let newcomer = |running: &mut Running| {
            let labels = vec![("service", "new")];
            running.interner.intern(&mut Descriptor { name: "m", labels, ..Descriptor::default() }).unwrap();
        };
        let (old, new): (Vec<_>, Vec<_>) = views().into_iter().map(|(_, old, new)| (old, new)).unzip();
        let (old, new): (Vec<String>, Vec<String>) = (old.into_iter().flatten().collect(), new.into_iter().flatten().collect());
        let undisturbed = |views: &[String]| {
            let mut running = Running::of(views, 3);
            newcomer(&mut running);
            let mut emitted = Vec::new();
            rows(0, total).chunks(batch).for_each(|rows| emitted.extend(running.push(rows).0));
            emitted.extend(running.end());
            emitted
        };
        let mut running = Running::of(&old, 3);
        let mut emitted = Vec::new();
        let before = rows(0, at * batch);
        before.chunks(batch).for_each(|rows| emitted.extend(running.push(rows).0));
        let closed = running.engine.closed_through("width");
        let adopted = reload(&mut running, &new, &before, &emitted);
        newcomer(&mut running);
        rows(at * batch, total).chunks(batch).for_each(|rows| emitted.extend(running.push(rows).0));
        emitted.extend(running.end());

        let (as_before, as_after) = (undisturbed(&old), undisturbed(&new));
        let of = |emitted: &[Emission], view: &str, after: EventTime, through: EventTime| {
            let within = |one: &&Emission| &*one.view == view && after < one.window.end && one.window.end <= through;
            read(&emitted.iter().filter(within).cloned().collect::<Vec<_>>())
        };
        let all = (EventTime::MIN, EventTime::MAX);
        for view in ["alone", "shared", "over_kept", "session", "lag", "both"] {
            prop_assert!(adopted.kept.contains(view), "{} goes on: {:?}", view, adopted);
            prop_assert_eq!(of(&emitted, view, all.0, all.1), of(&as_before, view, all.0, all.1), "{}", view);
        }
        for view in ["mate", "over_changed"] {
            prop_assert!(adopted.rebuilt.contains(view), "{} shares a pass with, or reads, what changed: {:?}", view, adopted);
        }
        prop_assert_eq!(of(&emitted, "mate", all.0, all.1), of(&as_before, "mate", all.0, all.1));
        prop_assert_eq!(adopted.changed.iter().map(|name| &**name).collect::<Vec<_>>(), ["width"]);
        prop_assert_eq!(adopted.gone.iter().map(|name| &**name).collect::<Vec<_>>(), ["gone"]);
        prop_assert_eq!(of(&emitted, "width", all.0, closed), of(&as_before, "width", all.0, closed));
        prop_assert_eq!(of(&emitted, "width", closed, all.1), of(&as_after, "width", closed, all.1));
    }
}

#[test]
fn a_new_view_begins_where_the_others_stand_or_as_far_back_as_it_asks() {
    let old = [tumble("a", 10, "sum(value)", "")];
    let new = [
        tumble("a", 10, "sum(value)", ""),
        tumble("b", 20, "sum(value)", "").replace("'m'", "'m' AND value > 0"),
        tumble("c", 20, "sum(value)", ", backfill = '1 minute'").replace("'m'", "'m' AND value >= 0"),
    ];
    let rows: Vec<_> = (0..205).map(|second| (0, second * SECOND, 1.0)).collect();
    let mut running = Running::of(&old, 3);
    running.push(&rows);
    let before = std::mem::replace(&mut running.engine, engine_of(&new));
    let adopted = running.engine.adopt(before, &running.interner).unwrap();
    assert_eq!(adopted.new.len(), 2);
    for (view, backfill) in running.engine.rebuilding() {
        let frontier = running.engine.frontier(&view).unwrap();
        assert_eq!(frontier.as_micros(), 194 * SECOND, "ten seconds behind the newest row");
        running.engine.resume(&view, frontier - backfill);
    }
    assert_eq!(running.engine.needs_from(Source::Metrics), Some(EventTime::from_micros(114 * SECOND)));
    assert_eq!(running.engine.settled_before(Source::Metrics), Some(EventTime::from_micros(194 * SECOND)));
    let (first, rest): (Vec<_>, Vec<_>) =
        rows.into_iter().filter(|row| row.1 >= 114 * SECOND).partition(|row| row.1 < 150 * SECOND);
    let mut late = LateBefore::default();
    running.engine.rebuild_from_samples(&samples(&first), &running.interner, &mut late).unwrap();
    let settled = block_on(running.engine.settle(Source::Metrics, EventTime::from_micros(150 * SECOND))).unwrap();
    running.rebuild(&rest, &mut late);
    let mut emitted = settled.clone();
    emitted.extend(running.end());
    let ends = |view: &str, of: &[Emission]| -> Vec<i64> {
        of.iter().filter(|one| &*one.view == view).map(|one| one.window.end.as_micros() / SECOND).collect()
    };
    assert_eq!(ends("c", &settled), [140], "what is settled is closed on the way");
    assert_eq!(ends("b", &emitted), [200, 220]);
    assert_eq!(ends("c", &emitted), [140, 160, 180, 200, 220]);
    let whole = emitted.iter().filter(|one| one.window.end.as_micros() <= 200 * SECOND && &*one.view != "a");
    assert!(read(&whole.filter(|one| &*one.view == "c").cloned().collect::<Vec<_>>()).values().all(|(n, _)| *n == 20));
}
