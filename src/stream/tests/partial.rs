//! Several instances: what they gather of their own partitions, finished by one, are the windows of one engine that reads
//! everything; and what is late is late where it came in, never where it is finished.

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use proptest::prelude::*;

use super::*;
use crate::stream::partial::{Increment, Merged};

const PARTITIONS: usize = 3;

/// Some instances that gather, one that finishes, and what is under way between them.
struct Group {
    gatherers: Vec<Engine>,
    finisher: Engine,
    interner: Interner,
    /// Of each partition: the newest row, and what it has promised.
    seen: [Option<EventTime>; PARTITIONS],
    promised: [Option<EventTime>; PARTITIONS],
    late: Vec<Late>,
    /// Groups that reached the finisher after their windows had closed.
    closed: usize,
    emitted: Vec<Emission>,
    told: Vec<Told>,
}

/// A finisher hears what was told; returns how many groups came after their windows had closed.
fn hear(finisher: &mut Engine, (increments, promises): &Told) -> usize {
    let mut late = 0;
    for increment in increments {
        late += match finisher.merge(&increment.pass, &increment.rows).unwrap() {
            Merged::Taken { closed } => closed,
            Merged::Unwanted => unreachable!("all have the same views"),
        };
    }
    for (partition, promise) in promises {
        finisher.clock(Source::Metrics).observe(&key(*partition), *promise);
    }
    late
}

fn of_several(views: &[String]) -> Engine {
    let defaults = Defaults { lateness: Duration::from_secs(10), state_bytes_max: usize::MAX };
    let files: Vec<(String, &String)> = views.iter().enumerate().map(|(at, sql)| (format!("{at}.sql"), sql)).collect();
    let views = Definitions::read(&files, defaults).unwrap().views;
    block_on(Engine::of_several(views, &[], &Arc::new(Schema::empty()))).unwrap()
}

fn finisher(views: &[String]) -> Engine {
    let mut finisher = of_several(views).finishing();
    (0..PARTITIONS).for_each(|partition| finisher.clock(Source::Metrics).add(key(partition)));
    finisher
}

/// What one flush told: states, then promises.
type Told = (Vec<Increment>, Vec<(usize, EventTime)>);

fn key(partition: usize) -> PartitionKey {
    ("t".into(), partition as i32)
}

impl Group {
    fn of(views: &[String], instances: usize) -> Group {
        let finisher = finisher(views);
        let gatherers = (0..instances).map(|_| of_several(views).gathering()).collect();
        let (seen, promised) = Default::default();
        Group {
            gatherers,
            finisher,
            interner: interner(3),
            seen,
            promised,
            late: Vec::new(),
            closed: 0,
            emitted: Vec::new(),
            told: Vec::new(),
        }
    }

    /// An instance reads rows of a partition.
    fn push(&mut self, instance: usize, partition: usize, rows: &[(u32, i64, f64)]) {
        let engine = &mut self.gatherers[instance];
        engine.stand_at(Source::Metrics, self.promised[partition]);
        engine.push_samples(&samples(rows), &self.interner, &mut self.late).unwrap();
        let newest = rows.iter().map(|row| EventTime::from_micros(row.1)).max();
        self.seen[partition] = self.seen[partition].max(newest);
    }

    /// An instance sends what it has, with the promises of its partitions.
    fn flush(&mut self, instance: usize, partitions: impl Iterator<Item = usize>) {
        let increments = self.gatherers[instance].drain().unwrap();
        let carry = |increment: Increment| Increment { rows: carried(&increment.rows), ..increment };
        let mut promises = Vec::new();
        for partition in partitions {
            self.promised[partition] = self.seen[partition];
            promises.extend(self.promised[partition].map(|promise| (partition, promise)));
        }
        let told = (increments.into_iter().map(carry).collect(), promises);
        self.closed += hear(&mut self.finisher, &told);
        self.told.push(told);
        self.emitted.extend(block_on(self.finisher.advance()).unwrap());
    }

    fn end(&mut self) -> Vec<Emission> {
        let last = EventTime::from_micros(2_000_000 * SECOND);
        (0..PARTITIONS).for_each(|partition| self.finisher.clock(Source::Metrics).observe(&key(partition), last));
        self.emitted.extend(block_on(self.finisher.advance()).unwrap());
        std::mem::take(&mut self.emitted)
    }
}

/// Rows as they come out of a topic.
fn carried(rows: &RecordBatch) -> RecordBatch {
    let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema()).unwrap();
    writer.write(rows).unwrap();
    let bytes = writer.into_inner().unwrap();
    StreamReader::try_new(bytes.as_slice(), None).unwrap().next().unwrap().unwrap()
}

fn views() -> Vec<String> {
    let over = |name: &str, aggregate: &str, window: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {name} WITH (lateness = '10s') AS SELECT window_start, window_end, \
             labels['service'] AS service, count(*) AS n, {aggregate} AS total FROM metrics \
             WHERE name = 'm' GROUP BY {window}, labels['service']"
        )
    };
    let lag = "sum(value) - coalesce(lag(sum(value)) OVER (PARTITION BY labels['service'] ORDER BY window_start), 0)";
    vec![
        over("sums", "sum(value)", "tumble(ts, INTERVAL '10 seconds')"),
        over("quantiles", "hdr_quantile(value + 200, 0.9)", "hop(ts, INTERVAL '5 seconds', INTERVAL '1 minute')"),
        over("means", "avg(value)", "hop(ts, INTERVAL '20 seconds', INTERVAL '30 seconds')"),
        over("changes", lag, "tumble(ts, INTERVAL '20 seconds')"),
        // These compute the same, and more of it; what is gathered of one must not reach the other.
        over("plain", "sum(value)", "tumble(ts, INTERVAL '20 seconds')"),
        over("changes_again", &format!("{lag} + 1"), "tumble(ts, INTERVAL '20 seconds')"),
        over("sessions", "max(value)", "session(ts, INTERVAL '7 seconds')"),
        over("sessions_again", "max(value) + 1", "session(ts, INTERVAL '7 seconds')"),
        over("distinct_values", "CAST(count(DISTINCT value) AS DOUBLE)", "tumble(ts, INTERVAL '30 seconds')"),
        "CREATE MATERIALIZED VIEW minutes AS SELECT window_start, window_end, service, sum(n) AS n, sum(total) AS total \
         FROM sums GROUP BY tumble(ts, INTERVAL '1 minute'), service"
            .to_owned(),
    ]
}

fn by_view(emissions: &[Emission]) -> BTreeMap<String, Windows> {
    let mut views: BTreeMap<String, Vec<Emission>> = BTreeMap::new();
    for emission in emissions {
        views.entry(emission.view.to_string()).or_default().push(emission.clone());
    }
    views.into_iter().map(|(view, emissions)| (view, read(&emissions))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_several_gather_is_what_one_would_have_seen(
        steps in prop::collection::vec((0u32..4, 0i64..6, 0i64..9, -100i64..100), 1..200),
        turns in prop::collection::vec((0..PARTITIONS, 0usize..3, 1usize..20, any::<bool>()), 1..60),
    ) {
        let mut single = Running::of(&views(), 3);
        let mut group = Group::of(&views(), 3);
        let rows = rows_of(&steps);
        let mut left = rows.as_slice();
        // Each partition is read by one instance at a time; it moves only after a flush, as at a revocation.
        let mut owner = [0, 1, 2];
        for (partition, instance, count, flush) in turns.into_iter().cycle() {
            let (now, rest) = left.split_at(count.min(left.len()));
            left = rest;
            if owner[partition] != instance {
                let mine = owner[partition];
                group.flush(mine, (0..PARTITIONS).filter(|at| owner[*at] == mine));
                owner[partition] = instance;
            }
            group.push(instance, partition, now);
            if flush {
                group.flush(instance, (0..PARTITIONS).filter(|at| owner[*at] == instance));
            }
            if left.is_empty() {
                break;
            }
        }
        (0..3).for_each(|instance| group.flush(instance, (0..PARTITIONS).filter(|at| owner[*at] == instance)));
        prop_assert!(group.late.is_empty(), "no partition is behind itself by more than the lateness: {:?}", group.late);
        let mut expected = Vec::new();
        single.engine.push_samples(&samples(&rows), &single.interner, &mut Vec::new()).unwrap();
        single.newest = rows.iter().map(|row| row.1).max().unwrap();
        expected.extend(single.end());
        prop_assert_eq!(by_view(&group.end()), by_view(&expected));
    }

    #[test]
    fn what_is_late_is_late_where_it_came_in(
        steps in prop::collection::vec((0u32..3, 0i64..6, 0i64..60, 1i64..100), 1..200),
        turns in prop::collection::vec((0..PARTITIONS, 1usize..10, any::<bool>()), 1..60),
        session in any::<bool>(),
    ) {
        let windows = if session {
            ["session(ts, INTERVAL '7 seconds')", "session(ts, INTERVAL '9 seconds')"]
        } else {
            ["tumble(ts, INTERVAL '10 seconds')", "tumble(ts, INTERVAL '1 minute')"]
        };
        let named = |(number, window): (usize, &str)| view(window).replace("VIEW v ", &format!("VIEW v{number} "));
        let views: Vec<String> = windows.into_iter().enumerate().map(named).collect();
        let mut group = Group::of(&views, PARTITIONS);
        let rows = rows_of(&steps);
        let mut left = rows.as_slice();
        for (partition, count, flush) in turns.into_iter().cycle() {
            let (now, rest) = left.split_at(count.min(left.len()));
            left = rest;
            group.push(partition, partition, now);
            if flush {
                group.flush(partition, std::iter::once(partition));
            }
            if left.is_empty() {
                break;
            }
        }
        (0..PARTITIONS).for_each(|at| group.flush(at, std::iter::once(at)));
        for (view, windows) in by_view(&group.end()) {
            let taken: i64 = windows.values().map(|(rows, _)| rows).sum();
            let late = group.late.iter().filter(|late| format!("v{}", late.view) == view).count();
            prop_assert_eq!(taken as usize + late, rows.len(), "each row is in one window of {}, or late for it", view);
        }
        prop_assert_eq!(group.closed, 0, "nothing reaches a window that is closed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The one that took over reads again what the one before had committed, and that one's windows may be further in the
    /// store than its offsets are.
    #[test]
    fn whoever_takes_over_closes_the_same_windows(
        steps in prop::collection::vec((0u32..3, 0i64..9, 0i64..9, -100i64..100), 20..200),
        turns in prop::collection::vec((0..PARTITIONS, 1usize..20), 1..60),
        dies_at in 0.0..1.0f64,
        committed in 0.0..1.0f64,
    ) {
        let mut group = Group::of(&views(), PARTITIONS);
        let rows = rows_of(&steps);
        let mut left = rows.as_slice();
        for (partition, count) in turns.into_iter().cycle() {
            let (now, rest) = left.split_at(count.min(left.len()));
            left = rest;
            group.push(partition, partition, now);
            group.flush(partition, std::iter::once(partition));
            if left.is_empty() {
                break;
            }
        }
        let last = (0..PARTITIONS).map(|partition| (partition, EventTime::from_micros(2_000_000 * SECOND))).collect();
        group.told.push((Vec::new(), last));
        let expected = by_view(&group.end());

        let dies_at = (dies_at * group.told.len() as f64) as usize;
        let committed = (committed * (dies_at + 1) as f64) as usize;
        let mut first = finisher(&views());
        let mut emitted = Vec::new();
        for told in &group.told[..dies_at] {
            hear(&mut first, told);
            emitted.extend(block_on(first.advance()).unwrap());
        }
        let mut second = finisher(&views());
        for at in first.progress().filter(|at| at.closed_through > EventTime::MIN) {
            second.resume(at.view, at.closed_through);
        }
        for refill in second.refills() {
            let of = emitted.iter().filter(|one| one.view == refill.from_view && one.window.start >= refill.needs_from);
            of.for_each(|one| second.refill(&refill, one).unwrap());
        }
        for told in &group.told[..committed] {
            hear(&mut second, told);
        }
        second.rebuilt();
        for told in &group.told[committed..] {
            emitted.extend(block_on(second.advance()).unwrap());
            hear(&mut second, told);
        }
        emitted.extend(block_on(second.advance()).unwrap());
        prop_assert_eq!(by_view(&emitted), expected);
    }
}

/// Why who gathers must know what is late: a row of a window that is closed elsewhere would vanish without a word.
#[test]
fn control_without_promises_a_late_row_is_in_no_window_and_nowhere_else() {
    let found = [true, false].map(|knows| {
        let mut group = Group::of(&[view("tumble(ts, INTERVAL '10 seconds')")], PARTITIONS);
        for partition in 0..PARTITIONS {
            group.push(partition, partition, &[(0, SECOND, 1.0), (0, 100 * SECOND, 1.0)]);
            group.flush(partition, std::iter::once(partition));
        }
        if !knows {
            group.promised = Default::default();
        }
        group.push(0, 0, &[(0, 2 * SECOND, 1.0)]);
        group.flush(0, std::iter::once(0));
        let windows = read(&group.end());
        (windows.values().map(|(rows, _)| *rows as usize).sum::<usize>() + group.late.len(), group.closed)
    });
    assert_eq!(found, [(7, 0), (6, 1)]);
}

#[test]
fn increments_of_a_view_that_is_not_here_are_told() {
    let mut group = Group::of(&[view("tumble(ts, INTERVAL '10 seconds')")], 1);
    group.finisher = finisher(&[view("tumble(ts, INTERVAL '20 seconds')")]);
    group.push(0, 0, &[(0, SECOND, 1.0)]);
    let increments = group.gatherers[0].drain().unwrap();
    assert_eq!(group.finisher.merge(&increments[0].pass, &increments[0].rows).unwrap(), Merged::Unwanted);
    assert!(group.gatherers[0].drain().unwrap().is_empty(), "what is taken out is gone");
}
