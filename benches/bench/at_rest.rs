//! What samples cost at rest: the store of a fleet scraped as by Prometheus' node exporter, as committed and compacted.
//!
//! `BELLWETHER_BENCH_HOSTS` (default 100) hosts of 500 series each, every 15 s for `BELLWETHER_BENCH_HOURS` (6).
//! `BELLWETHER_BENCH_KEEP` names a folder to leave the store in, for other engines to read.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use bellwether::model::series::{Descriptor, Interner, SeriesId};
use bellwether::model::time::EventTime;
use bellwether::store::{Eagerness, Settings, Store, columns};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::measure::{Results, once, resident_mib};

const INTERVAL: i64 = 15_000_000;
/// 2026-11-02 00:00 UTC: six hours from there are of one day.
const START: i64 = 1_793_577_600_000_000;
/// Scrapes in one commit, as many as a commit every minute holds.
const SCRAPES_PER_COMMIT: i64 = 4;

/// What the series of one host are like. The proportions are those of a host of four processors, three disks and four
/// interfaces: most of what a node exporter says never changes, or counts something rare.
const KINDS: [(Kind, usize); 10] = [
    (Kind::Zero, 150),
    (Kind::Constant, 90),
    (Kind::Rare, 60),
    (Kind::Slow, 45),
    (Kind::Processor, 32),
    (Kind::Bytes, 30),
    (Kind::Pages, 40),
    (Kind::Small, 40),
    (Kind::Load, 3),
    (Kind::Noise, 10),
];

#[derive(Clone, Copy)]
enum Kind {
    /// An error counter of sound hardware.
    Zero,
    /// A size, a limit, a boot time.
    Constant,
    /// A counter that moves once in a while.
    Rare,
    /// A counter of a few tens per scrape.
    Slow,
    /// Seconds of a processor in a mode, by hundredths.
    Processor,
    /// A counter of bytes or packets under load.
    Bytes,
    /// Memory: a walk in pages of 4 KiB.
    Pages,
    /// A few processes, sockets, descriptors.
    Small,
    /// A load average, by hundredths.
    Load,
    /// A duration, with all its digits.
    Noise,
}

struct Track {
    kind: Kind,
    random: StdRng,
    value: f64,
    rate: f64,
}

impl Track {
    fn new(kind: Kind, seed: u64) -> Track {
        let mut random = StdRng::seed_from_u64(seed);
        let (value, rate) = match kind {
            Kind::Zero => (0.0, 0.0),
            Kind::Constant => (random.random_range(1..1_000_000) as f64 * 4096.0, 0.0),
            Kind::Rare => (random.random_range(0..50_000) as f64, random.random_range(0.001..0.02)),
            Kind::Slow => (random.random_range(0..10_000_000) as f64, random.random_range(1.0..40.0)),
            Kind::Processor => (random.random_range(0..50_000_000) as f64, random.random_range(0.0..1500.0)),
            Kind::Bytes => (random.random_range(0..1_i64 << 36) as f64, random.random_range(1e4..1e6)),
            Kind::Pages => (random.random_range(10_000..2_000_000) as f64, random.random_range(1.0..500.0)),
            Kind::Small => (random.random_range(2..300) as f64, 1.0),
            Kind::Load => (random.random_range(10..800) as f64, 8.0),
            Kind::Noise => (0.01, 0.002),
        };
        Track { kind, random, value, rate }
    }

    fn next(&mut self) -> f64 {
        let (random, rate) = (&mut self.random, self.rate);
        match self.kind {
            Kind::Zero | Kind::Constant => self.value,
            Kind::Rare => {
                self.value += f64::from(random.random_bool(rate));
                self.value
            }
            Kind::Slow => {
                self.value += (rate * random.random_range(0.6..1.4)).round();
                self.value
            }
            Kind::Processor => {
                self.value += (rate * random.random_range(0.9..1.1)).round();
                self.value / 100.0
            }
            Kind::Bytes => {
                self.value += (rate * random.random_range(0.3..1.7)).round();
                self.value
            }
            Kind::Pages => {
                self.value = (self.value + (rate * random.random_range(-1.0..1.0)).round()).max(1.0);
                self.value * 4096.0
            }
            Kind::Small => {
                if random.random_bool(0.2) {
                    self.value = (self.value + random.random_range(-2..=2) as f64).max(0.0);
                }
                self.value
            }
            Kind::Load => {
                self.value = (self.value + (rate * random.random_range(-1.0..1.0)).round()).max(0.0);
                self.value / 100.0
            }
            Kind::Noise => random.random_range(0.5..1.5) * rate + self.value,
        }
    }
}

/// The series, with their ids, and the hosts' phases.
struct Fleet {
    interner: Interner,
    ids: Vec<SeriesId>,
    phases: Vec<i64>,
    tracks: Vec<Track>,
}

impl Fleet {
    fn new(hosts: usize) -> Result<Fleet> {
        let kinds: Vec<Kind> = KINDS.iter().flat_map(|&(kind, n)| std::iter::repeat_n(kind, n)).collect();
        let mut fleet =
            Fleet { interner: Interner::new(usize::MAX), ids: Vec::new(), phases: Vec::new(), tracks: Vec::new() };
        let mut random = StdRng::seed_from_u64(15);
        for host in 0..hosts {
            fleet.phases.push(random.random_range(0..15_000) * 1000);
            let instance = format!("host-{host:04}.example:9100");
            for (at, &kind) in kinds.iter().enumerate() {
                let (name, device) = (format!("node_metric_{:03}_total", at / 2), format!("device{}", at % 2));
                let labels = vec![("device", device.as_str()), ("instance", &instance), ("job", "node")];
                fleet.interner.intern(&mut Descriptor { name: &name, labels, ..Descriptor::default() })?;
                fleet.tracks.push(Track::new(kind, (host * 1000 + at) as u64));
            }
        }
        fleet.ids = fleet.interner.ids().to_vec();
        Ok(fleet)
    }

    /// Returns the samples of some scrapes, as they come in: scrape after scrape.
    fn samples(&mut self, scrapes: std::ops::Range<i64>, store: &Store) -> Result<RecordBatch> {
        let rows = self.ids.len() * (scrapes.end - scrapes.start) as usize;
        let (mut ids, mut ts, mut values) =
            (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::with_capacity(rows));
        let each_host = self.ids.len() / self.phases.len();
        for scrape in scrapes {
            for (at, track) in self.tracks.iter_mut().enumerate() {
                ids.push(self.ids[at].0);
                ts.push(START + scrape * INTERVAL + self.phases[at / each_host]);
                values.push(track.next());
            }
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(ids)),
            Arc::new(TimestampMicrosecondArray::from(ts).with_timezone("UTC")),
            Arc::new(Float64Array::from(values)),
        ];
        Ok(RecordBatch::try_new(store.schema("samples")?, columns)?)
    }
}

pub fn run(filter: &str, results: &mut Results) -> Result<()> {
    if !"store/at_rest".contains(filter) {
        return Ok(());
    }
    let number = |name: &str, default: i64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (hosts, hours) = (number("BELLWETHER_BENCH_HOSTS", 100)?, number("BELLWETHER_BENCH_HOURS", 6)?);
    let folder = tempfile::tempdir()?;
    let kept = std::env::var_os("BELLWETHER_BENCH_KEEP").map(PathBuf::from);
    let url = kept.unwrap_or_else(|| folder.path().to_owned()).display().to_string();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let settings = Settings { url, durable: false, ..Settings::default() };
    let store = runtime.block_on(Store::open(&settings, columns::record_tables()))?;
    let scrapes = hours * 3600 * 1_000_000 / INTERVAL;
    let mut fleet = Fleet::new(hosts as usize)?;
    let all = 0..fleet.ids.len();
    let series = columns::series(fleet.interner.range(all), EventTime::from_micros(START), &store.schema("series")?)?;
    store.append("series", Some(series), &[])?;
    let rows = fleet.ids.len() * scrapes as usize;
    println!("{hosts} hosts, {} series, {hours} h: {rows} samples", fleet.ids.len());

    let (mut wall, mut cpu, mut merged) = (0.0, 0.0, 0.0);
    let mut beside = Beside::default();
    for begin in (0..scrapes).step_by(SCRAPES_PER_COMMIT as usize) {
        let batch = fleet.samples(begin..(begin + SCRAPES_PER_COMMIT).min(scrapes), &store)?;
        let (_, took) = once(|| {
            store.append("samples", Some(batch), &[("bench/0", begin + 1)])?;
            runtime.block_on(store.commit()).context("a commit failed")
        })?;
        (wall, cpu) = (wall + took.wall_seconds, cpu + took.cpu_seconds);
        merged += beside.merge(&runtime, &store, Eagerness::AsDue)?;
    }
    let millions = rows as f64 / 1e6;
    results.add("store/at_rest/commit/per_second", "samples/s", vec![rows as f64 / wall]);
    results.add("store/at_rest/commit/cpu_per_million", "seconds", vec![cpu / millions]);
    results.add("store/at_rest/merge_beside/cpu_per_million", "seconds", vec![merged / millions]);
    results.add("store/at_rest/files_before", "files", vec![files(&store) as f64]);
    results.add("store/at_rest/bytes_per_sample_before", "bytes", vec![bytes(&store) / rows as f64]);
    let (rewritten, begun) = (beside.rows, std::time::Instant::now());
    let last = beside.merge(&runtime, &store, Eagerness::Thorough)?;
    let rewritten = beside.rows - rewritten;
    ensure!(rewritten as usize == rows, "{rewritten} of {rows} samples were compacted");
    let took = begun.elapsed().as_secs_f64();
    results.add("store/at_rest/compact/per_second", "samples/s", vec![rewritten as f64 / took]);
    results.add("store/at_rest/compact/cpu_per_million", "seconds", vec![last / millions]);
    results.add("store/at_rest/bytes_per_sample", "bytes", vec![bytes(&store) / rows as f64]);
    results.add("store/at_rest/resident", "MiB", vec![resident_mib()?]);
    Ok(())
}

/// Merges of samples beside commits, and their CPU time.
#[derive(Default)]
struct Beside {
    rows: u64,
}

impl Beside {
    fn merge(&mut self, runtime: &tokio::runtime::Runtime, store: &Store, eagerness: Eagerness) -> Result<f64> {
        let mut cpu = 0.0;
        loop {
            let due: Vec<_> = store.due(eagerness).into_iter().filter(|due| due.table() == "samples").collect();
            if due.is_empty() {
                return Ok(cpu);
            }
            for due in due {
                let (done, took) = once(|| Ok(runtime.block_on(store.merge(&due))?))?;
                self.rows += done.context("nobody else merges")?.rows;
                cpu += took.cpu_seconds;
            }
        }
    }
}

fn files(store: &Store) -> usize {
    store.held().iter().filter(|held| held.table == "samples").map(|held| held.files).sum()
}

/// Returns the bytes of samples and series together.
fn bytes(store: &Store) -> f64 {
    store
        .held()
        .iter()
        .filter(|held| ["samples", "series"].contains(&held.table.as_str()))
        .map(|held| held.bytes as f64)
        .sum()
}
