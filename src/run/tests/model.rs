//! The naive model: what must stand in every table and on every topic, computed anew from what the records mean. Written
//! from the meaning of views and rules; uses nothing of the engine's.

use std::collections::{BTreeMap, BTreeSet};

use super::log::{BEGIN, Event, Meaning, SECOND, Sample};

pub const LOAD_10S: &str = "CREATE MATERIALIZED VIEW load_10s \
    WITH (lateness = '5 seconds', topic = 'out.load', late_topic = 'out.late') AS \
    SELECT window_start, window_end, labels['service'] AS key, count(*) AS n, sum(value) AS total, max(value) AS top \
    FROM metrics WHERE name = 'load' GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service']";
pub const LOAD_1M_BY_20S: &str = "CREATE MATERIALIZED VIEW load_1m_by_20s WITH (lateness = '5 seconds') AS \
    SELECT window_start, window_end, labels['service'] AS key, count(*) AS n, sum(value) AS total \
    FROM metrics WHERE name = 'load' \
    GROUP BY hop(ts, INTERVAL '20 seconds', INTERVAL '1 minute'), labels['service']";
pub const LOAD_1M: &str = "CREATE MATERIALIZED VIEW load_1m AS \
    SELECT window_start, window_end, key, sum(n) AS n, sum(total) AS total, max(top) AS top \
    FROM load_10s GROUP BY tumble(window_start, INTERVAL '1 minute'), key";
pub const FAILURES_30S: &str = "CREATE MATERIALIZED VIEW failures_30s WITH (lateness = '5 seconds') AS \
    SELECT window_start, window_end, subject AS key, count(*) AS n, \
    count(*) FILTER (WHERE outcome = 'failure') AS failures \
    FROM events WHERE type = 'run' GROUP BY tumble(ts, INTERVAL '30 seconds'), subject";
pub const BUSY: &str = "CREATE MATERIALIZED VIEW busy WITH (lateness = '5 seconds') AS \
    SELECT window_start, window_end, labels['service'] AS key, count(*) AS n, sum(value) AS total \
    FROM metrics WHERE name = 'load' \
    GROUP BY session(ts, INTERVAL '8 seconds', INTERVAL '20 minutes'), labels['service']";

pub const LOAD_HIGH: &str =
    "-- severity: warning\n-- for: 20s\nSELECT key, total AS value FROM load_10s WHERE total > 60";
pub const FAILING: &str = "-- severity: critical\nSELECT key, failures AS value FROM failures_30s WHERE failures > 2";

/// Rows of a view: start, end and key to its numbers.
pub type Rows = BTreeMap<(i64, i64, String), Vec<i64>>;
/// Transitions: rule, key, state and time.
pub type Transitions = BTreeSet<(String, String, String, i64)>;

/// The windows of a width, at multiples of a slide, that hold a time.
fn windows(ts: i64, width: i64, slide: i64) -> impl Iterator<Item = (i64, i64)> {
    let last = ts.div_euclid(slide * SECOND) * slide * SECOND;
    (0..width / slide).map(move |back| last - back * slide * SECOND).map(move |start| (start, start + width * SECOND))
}

fn loads<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> impl Iterator<Item = &'a Sample> {
    samples.into_iter().filter(|sample| sample.name == "load")
}

pub fn load_10s<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Rows {
    let mut rows = Rows::new();
    for Sample { service, ts, value, .. } in loads(samples) {
        for (start, end) in windows(*ts, 10, 10) {
            let row = rows.entry((start, end, (*service).to_owned())).or_insert(vec![0, 0, 0]);
            (row[0], row[1], row[2]) = (row[0] + 1, row[1] + value, row[2].max(*value));
        }
    }
    rows
}

pub fn load_1m_by_20s<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Rows {
    let mut rows = Rows::new();
    for Sample { service, ts, value, .. } in loads(samples) {
        for (start, end) in windows(*ts, 60, 20) {
            let row = rows.entry((start, end, (*service).to_owned())).or_insert(vec![0, 0]);
            (row[0], row[1]) = (row[0] + 1, row[1] + value);
        }
    }
    rows
}

/// Minutes made of the rows of ten seconds.
pub fn load_1m(tens: &Rows) -> Rows {
    let mut rows = Rows::new();
    for ((ten, _, key), numbers) in tens {
        for (start, end) in windows(*ten, 60, 60) {
            let row = rows.entry((start, end, key.clone())).or_insert(vec![0, 0, 0]);
            (row[0], row[1], row[2]) = (row[0] + numbers[0], row[1] + numbers[1], row[2].max(numbers[2]));
        }
    }
    rows
}

pub fn failures_30s<'a>(events: impl IntoIterator<Item = &'a Event>) -> Rows {
    let mut rows = Rows::new();
    for Event { subject, ts, failed, .. } in events {
        for (start, end) in windows(*ts, 30, 30) {
            let row = rows.entry((start, end, (*subject).to_owned())).or_insert(vec![0, 0]);
            (row[0], row[1]) = (row[0] + 1, row[1] + i64::from(*failed));
        }
    }
    rows
}

/// Sessions: rows with pauses of at most eight seconds between them.
pub fn busy<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Rows {
    let mut times: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
    for Sample { service, ts, value, .. } in loads(samples) {
        times.entry(service).or_default().push((*ts, *value));
    }
    let mut rows = Rows::new();
    for (service, mut times) in times {
        times.sort_unstable();
        for session in times.chunk_by(|(a, _), (b, _)| b - a <= 8 * SECOND) {
            let key = (session[0].0, session[session.len() - 1].0 + 8 * SECOND, service.to_owned());
            rows.insert(key, vec![session.len() as i64, session.iter().map(|(_, value)| value).sum()]);
        }
    }
    rows
}

/// All that follows from a log of which nothing is late.
pub struct Expected {
    pub views: BTreeMap<&'static str, Rows>,
    pub transitions: Transitions,
}

pub fn expected(meaning: &Meaning) -> Expected {
    let tens = load_10s(&meaning.samples);
    let thirties = failures_30s(&meaning.events);
    let mut transitions = Transitions::new();
    let high = |numbers: &[i64]| numbers[1] > 60;
    let failing = |numbers: &[i64]| numbers[1] > 2;
    watch("load_high", &tens, 10, 20, high, &mut transitions);
    watch("failing", &thirties, 30, 0, failing, &mut transitions);
    let views = BTreeMap::from([
        ("load_1m", load_1m(&tens)),
        ("load_10s", tens),
        ("load_1m_by_20s", load_1m_by_20s(&meaning.samples)),
        ("failures_30s", thirties),
        ("busy", busy(&meaning.samples)),
    ]);
    Expected { views, transitions }
}

/// Follows a rule over a view, tick by tick: what holds in the newest window is pending, then fires, then is over.
fn watch(rule: &str, rows: &Rows, slide: i64, hold: i64, holds: impl Fn(&[i64]) -> bool, into: &mut Transitions) {
    let keys: BTreeSet<&String> = rows.keys().map(|(_, _, key)| key).collect();
    for key in keys {
        let mut since: Option<i64> = None;
        let mut fires = false;
        for tick in (0..60).map(|tick| BEGIN + tick * 10 * SECOND) {
            let mut newest =
                rows.iter().filter(|((_, end, k), _)| k == key && *end <= tick && *end > tick - slide * SECOND);
            let is_true = newest.next_back().is_some_and(|(_, numbers)| holds(numbers));
            let mut tell = |state: &str| into.insert((rule.to_owned(), key.clone(), state.to_owned(), tick));
            match (is_true, since) {
                (true, None) => {
                    since = Some(tick);
                    fires = hold == 0;
                    tell(if fires { "firing" } else { "pending" });
                }
                (true, Some(start)) if !fires && tick - start >= hold * SECOND => {
                    fires = true;
                    tell("firing");
                }
                (false, Some(_)) => {
                    (since, fires) = (None, false);
                    tell("resolved");
                }
                _ => {}
            }
        }
    }
}
