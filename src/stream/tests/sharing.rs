//! Views that share an aggregation say what each would alone; bounds of memory hold; views over views come back.

use proptest::prelude::*;

use super::*;

const VIEWS: [(&str, &str); 5] = [
    ("a", "tumble(ts, INTERVAL '10 seconds')"),
    ("b", "tumble(ts, INTERVAL '1 minute')"),
    ("c", "hop(ts, INTERVAL '10 seconds', INTERVAL '2 minutes')"),
    ("d", "hop(ts, INTERVAL '20 seconds', INTERVAL '30 seconds')"),
    ("e", "hop(ts, INTERVAL '5 seconds', INTERVAL '1 minute')"),
];

fn sql((name, window): (&str, &str), aggregate: &str, lateness: usize) -> String {
    format!(
        "CREATE MATERIALIZED VIEW {name} WITH (lateness = '{lateness} seconds') AS \
         SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, {aggregate} AS total \
         FROM metrics WHERE name = 'm' AND value >= 0 GROUP BY {window}, labels['service']"
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn views_that_share_say_what_each_says_alone(
        steps in prop::collection::vec((0u32..3, 0i64..9, 0i64..40, -20i64..100), 1..200),
        batch in 1usize..30,
    ) {
        let rows = rows_of(&steps);
        let aggregates = ["sum(value)", "hdr_quantile(value, 0.5)", "hdr_quantile(value, 0.9)", "max(value)", "avg(value)"];
        let all: Vec<String> =
            VIEWS.iter().zip(aggregates).enumerate().map(|(at, (view, aggregate))| sql(*view, aggregate, at * 7)).collect();
        let run = |views: &[String]| {
            let mut running = Running::of(views, 3);
            let (mut emitted, mut late) = (Vec::new(), Vec::new());
            for rows in rows.chunks(batch) {
                let (made, lates) = running.push(rows);
                emitted.extend(made);
                late.extend(lates);
            }
            emitted.extend(running.end());
            (running, emitted, late)
        };
        let (running, together, late) = run(&all);
        prop_assert_eq!(running.engine.aggregations.len(), 1, "panes of five seconds serve all");
        for (at, sql) in all.iter().enumerate() {
            let (_, alone, alone_late) = run(std::slice::from_ref(sql));
            let own: Vec<Emission> = together.iter().filter(|e| &*e.view == VIEWS[at].0).cloned().collect();
            prop_assert_eq!(read(&own), read(&alone), "{}", sql);
            prop_assert_eq!(late.iter().filter(|one| one.view == at).count(), alone_late.len());
        }
    }
}

#[test]
fn a_view_that_is_full_refuses_new_groups_counts_them_and_goes_on() {
    let sql = |bound: usize| {
        format!(
            "CREATE MATERIALIZED VIEW v WITH (state_max = '{bound}KiB') AS \
             SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total \
             FROM metrics GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service']"
        )
    };
    let first: Vec<_> = (0..100).map(|s| (s, SECOND, 1.0)).collect();
    let mut unbound = Running::new(&sql(1 << 20), 200);
    unbound.push(&first);
    let bound = unbound.engine.progress().next().unwrap().bytes / 1024;
    let mut running = Running::new(&sql(bound), 200);
    running.push(&first);
    running.push(&(0..200).map(|s| (s, 2 * SECOND, 1.0)).collect::<Vec<_>>());
    let counts = running.engine.progress().next().unwrap().counts;
    assert_eq!((counts.rows, counts.refused), (200, 100));
    let windows = read(&running.end());
    assert_eq!(windows.len(), 100, "the groups that were there went on");
    assert!(windows.values().all(|(n, _)| *n == 2));
    // Closing made room.
    running.push(&[(150, 4_000_000 * SECOND, 1.0)]);
    assert_eq!(running.engine.progress().next().unwrap().counts.refused, 100);
}

const CHAIN: [&str; 4] = [
    "CREATE MATERIALIZED VIEW first WITH (lateness = '0s') AS \
     SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total \
     FROM metrics GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service']",
    "CREATE MATERIALIZED VIEW second AS SELECT window_start, window_end, service, sum(n) AS n, sum(total) AS total \
     FROM first GROUP BY hop(window_start, INTERVAL '20 seconds', INTERVAL '1 minute'), service",
    "CREATE MATERIALIZED VIEW third AS SELECT window_start, window_end, service, n, \
     total - lag(total) OVER (PARTITION BY service ORDER BY window_start) AS total FROM first",
    "CREATE MATERIALIZED VIEW fourth AS SELECT window_start, window_end, service, n, CAST(max(total) OVER \
     (PARTITION BY service ORDER BY window_start ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS DOUBLE) AS total \
     FROM (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total \
           FROM metrics GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service'])",
];

#[test]
fn views_over_views_and_views_that_look_back_go_on_after_a_restart() {
    let rows: Vec<(u32, i64, f64)> = (0..400).map(|s| ((s % 3) as u32, s * SECOND, ((s * 37) % 101) as f64)).collect();
    let views: Vec<String> = CHAIN.iter().map(|sql| (*sql).to_owned()).collect();
    for cut in [7, 60, 61, 119, 200, 399] {
        let mut whole = Running::of(&views, 3);
        let before = whole.push(&rows[..cut]).0;
        let through: Vec<(String, EventTime)> =
            whole.engine.progress().map(|at| (at.view.to_owned(), at.closed_through)).collect();
        let mut after = whole.push(&rows[cut..]).0;
        after.extend(whole.end());

        let mut resumed = Running::of(&views, 3);
        for (view, through) in &through {
            resumed.engine.resume(view, *through);
        }
        for refill in resumed.engine.refills() {
            for emission in before.iter().filter(|emission| emission.view == refill.from_view) {
                resumed.engine.refill(&refill, emission).unwrap();
            }
        }
        resumed.rebuild(&rows[..cut], &mut LateBefore::default());
        resumed.observe(rows[cut - 1].1);
        let mut again = block_on(resumed.engine.advance()).unwrap();
        again.extend(resumed.push(&rows[cut..]).0);
        again.extend(resumed.end());
        for view in ["first", "second", "third", "fourth"] {
            let of = |all: &[Emission]| {
                format!(
                    "{:?}",
                    all.iter().filter(|e| &*e.view == view).map(|e| (e.window, &e.rows)).collect::<Vec<_>>()
                )
            };
            assert_eq!(of(&again), of(&after), "{view}, cut at {cut}");
        }
    }
}

#[test]
fn a_view_that_looks_back_keeps_no_more_windows_than_fit_and_goes_on() {
    let sql = "CREATE MATERIALIZED VIEW v WITH (state_max = '16KiB', lateness = '0s') AS SELECT window_start, window_end, \
               labels['service'] AS service, count(*) AS n, sum(value) - coalesce(lag(sum(value)) OVER (PARTITION BY \
               labels['service'] ORDER BY window_start), 0) AS total FROM metrics \
               GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service']";
    let mut running = Running::new(sql, 1);
    let emitted: Vec<Emission> = (0..60).flat_map(|window| running.push(&[(0, window * 10 * SECOND, 1.0)]).0).collect();
    let progress = running.engine.progress().next().unwrap();
    assert_eq!(emitted.len(), 59);
    assert!(progress.counts.refused > 0 && progress.bytes < 20 << 10, "{progress:?}");
}
