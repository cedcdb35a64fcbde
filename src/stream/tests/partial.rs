//! Several instances: what they gather of their own partitions, finished by one, are the windows of one engine that reads
//! everything; and what is late is late where it came in, never where it is finished.

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use proptest::prelude::*;

use super::*;
use crate::stream::partial::Increment;

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
    emitted: Vec<Emission>,
}

fn key(partition: usize) -> PartitionKey {
    ("t".into(), partition as i32)
}

impl Group {
    fn of(views: &[String], instances: usize) -> Group {
        let mut finisher = engine_of(views).finishing();
        (0..PARTITIONS).for_each(|partition| finisher.clock(Source::Metrics).add(key(partition)));
        let gatherers = (0..instances).map(|_| engine_of(views).gathering()).collect();
        let (seen, promised) = Default::default();
        Group { gatherers, finisher, interner: interner(3), seen, promised, late: Vec::new(), emitted: Vec::new() }
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
        for increment in self.gatherers[instance].drain().unwrap() {
            let Increment { pass, rows, .. } = increment;
            assert!(self.finisher.merge(&pass, &carried(&rows)).unwrap(), "both have the same views");
        }
        for partition in partitions {
            self.promised[partition] = self.seen[partition];
            if let Some(promise) = self.promised[partition] {
                self.finisher.clock(Source::Metrics).observe(&key(partition), promise);
            }
        }
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
        over("sessions", "max(value)", "session(ts, INTERVAL '7 seconds')"),
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
        let window = if session { "session(ts, INTERVAL '7 seconds')" } else { "tumble(ts, INTERVAL '10 seconds')" };
        let mut group = Group::of(&[view(window)], PARTITIONS);
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
        let windows = read(&group.end());
        let taken: i64 = windows.values().map(|(rows, _)| rows).sum();
        prop_assert_eq!(taken as usize + group.late.len(), rows.len(), "each row is in one window, or late");
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
        windows.values().map(|(rows, _)| *rows as usize).sum::<usize>() + group.late.len()
    });
    assert_eq!(found, [7, 6]);
}

#[test]
fn increments_of_a_view_that_is_not_here_are_told() {
    let mut group = Group::of(&[view("tumble(ts, INTERVAL '10 seconds')")], 1);
    group.finisher = engine_of(&[view("tumble(ts, INTERVAL '20 seconds')")]).finishing();
    group.push(0, 0, &[(0, SECOND, 1.0)]);
    let increments = group.gatherers[0].drain().unwrap();
    assert!(!group.finisher.merge(&increments[0].pass, &increments[0].rows).unwrap());
    assert!(group.gatherers[0].drain().unwrap().is_empty(), "what is taken out is gone");
}
