//! Sessions against a naive model that looks at all rows again for every row.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const GAP: i64 = 10;
/// The longest is eight gaps, so sessions are cut at multiples of four.
const CELL: i64 = 4 * GAP;

fn sql() -> String {
    format!(
        "CREATE MATERIALIZED VIEW v WITH (lateness = '20 seconds') AS \
         SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total \
         FROM metrics WHERE name = 'm' \
         GROUP BY session(ts, INTERVAL '{GAP} seconds', INTERVAL '{} seconds'), labels['service']",
        8 * GAP
    )
}

/// Sorted times, split where a pause is longer than the gap.
fn natural(times: &[i64]) -> Vec<Vec<i64>> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let mut sessions: Vec<Vec<i64>> = Vec::new();
    for at in sorted {
        match sessions.last_mut().filter(|session| at - session[session.len() - 1] <= GAP) {
            Some(session) => session.push(at),
            None => sessions.push(vec![at]),
        }
    }
    sessions
}

/// The piece that a time falls into, of a session that began so.
fn piece(began: i64, at: i64) -> i64 {
    let first_cut = ((began + CELL) + CELL - 1).div_euclid(CELL) * CELL;
    if at < first_cut { -1 } else { at.div_euclid(CELL) }
}

fn is_late(times: &[i64], at: i64, watermark: i64) -> bool {
    let sessions = natural(times);
    let near = sessions.iter().filter(|s| s[0] - GAP <= at && at <= s[s.len() - 1] + GAP);
    let near: Vec<&Vec<i64>> = near.collect();
    if near.is_empty() {
        return at + GAP < watermark;
    }
    at < watermark
        && near.iter().any(|session| {
            let began = session[0];
            let same = session.iter().filter(|one| piece(began, **one) == piece(began, at));
            match same.max() {
                Some(last) => last + GAP < watermark,
                None => session.iter().any(|one| *one > at) || session[session.len() - 1] + GAP < watermark,
            }
        })
}

/// (start, end, service) to (count, sum) in whole seconds, and which rows were late.
type Model = (BTreeMap<(i64, i64, u32), (i64, i64)>, Vec<usize>);

fn model(rows: &[(u32, i64)]) -> Model {
    let mut accepted: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    let (mut late, mut newest) = (Vec::new(), i64::MIN / 2);
    for (number, &(series, at)) in rows.iter().enumerate() {
        let times = accepted.entry(series).or_default();
        match is_late(times, at, newest - 20) {
            true => late.push(number),
            false => times.push(at),
        }
        newest = newest.max(at);
    }
    let mut sessions = BTreeMap::new();
    for (series, times) in accepted {
        for session in natural(&times) {
            let mut pieces: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
            session.iter().for_each(|&at| pieces.entry(piece(session[0], at)).or_default().push(at));
            for times in pieces.into_values() {
                let key = (times[0], times[times.len() - 1] + GAP, series);
                sessions.insert(key, (times.len() as i64, times.iter().map(|at| at % 7).sum()));
            }
        }
    }
    (sessions, late)
}

fn read_sessions(emissions: &[Emission]) -> BTreeMap<(i64, i64, u32), (i64, i64)> {
    let mut sessions = BTreeMap::new();
    for Emission { rows, .. } in emissions {
        let time = |name: &str, row: usize| {
            rows.column_by_name(name).unwrap().as_primitive::<TimestampMicrosecondType>().value(row) / SECOND
        };
        for row in 0..rows.num_rows() {
            let service = rows.column_by_name("service").unwrap().as_string::<i32>().value(row)[1..].parse().unwrap();
            let n = rows.column_by_name("n").unwrap().as_primitive::<Int64Type>().value(row);
            let total = rows.column_by_name("total").unwrap().as_primitive::<Float64Type>().value(row) as i64;
            let key = (time("window_start", row), time("window_end", row), service);
            assert_eq!(sessions.insert(key, (n, total)), None, "a session emitted twice");
        }
    }
    sessions
}

fn push_all(running: &mut Running, rows: &[(u32, i64)]) -> (Vec<Emission>, Vec<usize>) {
    let (mut emitted, mut late) = (Vec::new(), Vec::new());
    for (number, &(series, at)) in rows.iter().enumerate() {
        let (made, lates) = running.push(&[(series, at * SECOND, (at % 7) as f64)]);
        emitted.extend(made);
        late.extend(lates.iter().map(|_| number));
    }
    (emitted, late)
}

fn rows() -> impl Strategy<Value = Vec<(u32, i64)>> {
    // Mostly dense, now and then a pause; each row up to 45 seconds back, more than the lateness.
    let step = prop_oneof![6 => 0i64..4, 1 => 5i64..40];
    let back = prop_oneof![4 => Just(0i64), 2 => 0i64..20, 1 => 20i64..45];
    prop::collection::vec((0u32..2, step, back), 1..160).prop_map(|steps| {
        let mut now = 1_000;
        let at = |(series, step, back): (u32, i64, i64)| {
            now += step;
            (series, now - back)
        };
        steps.into_iter().map(at).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn sessions_equal_a_naive_model(rows in rows()) {
        let mut running = Running::new(&sql(), 2);
        let (mut emitted, late) = push_all(&mut running, &rows);
        emitted.extend(running.end());
        let expected = model(&rows);
        prop_assert_eq!(late, expected.1);
        prop_assert_eq!(read_sessions(&emitted), expected.0);
        prop_assert!(emitted.is_sorted_by_key(|emission| emission.window.end));
    }

    #[test]
    fn sessions_go_on_after_a_restart_as_if_there_had_been_none(rows in rows(), cut in 0.0..1.0f64) {
        let cut = (rows.len() as f64 * cut) as usize;
        let mut whole = Running::new(&sql(), 2);
        let (before, late) = push_all(&mut whole, &rows[..cut]);
        let through = whole.engine.complete_through().unwrap();
        let (mut after, _) = push_all(&mut whole, &rows[cut..]);
        after.extend(whole.end());

        let mut resumed = Running::new(&sql(), 2);
        let mut late_before = LateBefore::default();
        for &row in &late {
            let (series, at) = rows[row];
            late_before.add_sample(0, SeriesRef(series), EventTime::from_micros(at * SECOND), (at % 7) as f64);
        }
        let stored: Vec<_> = rows[..cut].iter().map(|&(series, at)| (series, at * SECOND, (at % 7) as f64)).collect();
        resumed.resume(through, &stored, &mut late_before);
        // The clock of a partition starts anew; here from where it stood, as the row that moved it is the next to come.
        if let Some(newest) = rows[..cut].iter().map(|row| row.1).max() {
            resumed.observe(newest * SECOND);
        }
        let mut again = block_on(resumed.engine.advance()).unwrap();
        again.extend(push_all(&mut resumed, &rows[cut..]).0);
        again.extend(resumed.end());
        prop_assert!(before.iter().all(|emission| emission.window.end <= through));
        prop_assert_eq!(read_sessions(&again), read_sessions(&after));
    }
}
