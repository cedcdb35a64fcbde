//! Everything that can go wrong between a writer and its store, at random from a seed, against a model that is a list:
//! what was acknowledged is there, what was not is there once or not at all, positions and rows agree.
//!
//! `STORE_SEEDS=5000` tries more seeds, `STORE_SEED=17` only that one.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::faulty::{Fault, Faults, Operation};
use super::*;

const APPS: [&str; 2] = ["a", "b"];
const STEPS: usize = 10;
/// Tries to open a store, or to read a position, before it is called stuck.
const TRIES: usize = 200;

/// Where a restarted writer goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resume {
    /// At the positions in the store.
    Stored,
    /// After the last commit that was acknowledged; the store is told no positions. The control.
    Acknowledged,
}

/// One writer, killed and started again at will, with two partitions to read: row `i` of the partition `p` is
/// `p * 1000 + i`.
struct Writer {
    folder: tempfile::TempDir,
    faults: Arc<Faults>,
    random: StdRng,
    resume: Resume,
    store: Option<Store>,
    /// What comes next, by partition.
    next: [i64; 2],
    /// The model: how far commits were acknowledged, and how far one was ever tried.
    acknowledged: [i64; 2],
    tried: [i64; 2],
    fenced: usize,
}

fn faults_of(seed: u64) -> Arc<Faults> {
    let faults = Faults::none();
    let mut random = StdRng::seed_from_u64(seed ^ 0xfau64);
    let likely = [0.02, 0.1, 0.3][seed as usize % 3];
    let mut down = false;
    faults.decide(move |operation, _| {
        // A store that is late with a write does not tell at once that it is not there: the writer gives up, and may be
        // gone when it lands.
        if std::mem::take(&mut down) {
            return Fault::Before;
        }
        if !random.random_bool(likely) {
            return Fault::None;
        }
        match (operation, random.random_range(0..3)) {
            (Operation::Read, _) | (_, 0) => Fault::Before,
            (_, 1) => Fault::After,
            _ => {
                down = true;
                Fault::Late(random.random_range(1..100))
            }
        }
    });
    faults
}

impl Writer {
    fn new(seed: u64, resume: Resume) -> Writer {
        Writer {
            folder: tempfile::tempdir().unwrap(),
            faults: faults_of(seed),
            random: StdRng::seed_from_u64(seed),
            resume,
            store: None,
            next: [0; 2],
            acknowledged: [0; 2],
            tried: [0; 2],
            fenced: 0,
        }
    }

    async fn run(&mut self) {
        self.restart().await;
        for _ in 0..STEPS {
            match self.random.random_range(0..11) {
                0..4 => self.append(),
                4..9 => self.commit().await,
                9 => merge_all(self.store.as_ref().unwrap()).await,
                _ => self.restart().await,
            }
        }
        self.faults.heal();
        self.restart().await;
        self.append();
        self.append();
        while self.acknowledged != self.next {
            self.commit().await;
        }
        self.restart().await;
    }

    fn append(&mut self) {
        let p = self.random.random_range(0..2);
        let (base, from) = (p as i64 * 1000, self.next[p]);
        self.next[p] += self.random.random_range(1..4);
        let rows = daily_rows(base + from..base + self.next[p]);
        let position = [(APPS[p], self.next[p])];
        let positions = if self.resume == Resume::Stored { &position[..] } else { &[] };
        self.store.as_ref().unwrap().append("t", Some(rows), positions).unwrap();
    }

    async fn commit(&mut self) {
        // What was tried once may land late, whatever came after.
        self.tried = [0, 1].map(|p| self.tried[p].max(self.next[p]));
        match self.store.as_ref().unwrap().commit().await {
            Ok(_) => self.acknowledged = self.next,
            Err(error @ StoreError::Fenced { .. }) => {
                assert!(self.faults.landed_late() > 0, "nobody else writes, except the dead: {error}");
                self.fenced += 1;
                self.restart().await;
            }
            Err(error) => {
                assert!(error.retriable(), "{error:?}");
                if self.random.random_bool(0.3) {
                    self.restart().await;
                }
            }
        }
    }

    async fn restart(&mut self) {
        self.store = None;
        let mut tries = 0..TRIES;
        let store = loop {
            tries.next().expect("a store opens at last");
            match open_wrapped(self.folder.path(), vec![daily("t")], |objects| self.faults.wrap(objects)).await {
                Ok(store) => break store,
                Err(error) => assert!(error.retriable(), "{error:?}"),
            }
        };
        for (p, app) in APPS.iter().enumerate() {
            let stored = loop {
                tries.next().expect("a position is read at last");
                match store.position("t", app).await {
                    Ok(stored) => break stored.unwrap_or(0),
                    Err(error) => assert!(error.retriable(), "{error:?}"),
                }
            };
            self.next[p] = match self.resume {
                Resume::Stored => stored,
                Resume::Acknowledged => self.acknowledged[p],
            };
        }
        self.store = Some(store);
    }

    /// Holds what a reader without faults sees against the model.
    async fn check(&self) {
        let (acknowledged, tried) = (self.acknowledged, self.tried);
        for (p, app) in APPS.iter().enumerate() {
            let next = self.next[p];
            assert!((acknowledged[p]..=tried[p]).contains(&next), "{app} at {next}: {acknowledged:?}, {tried:?}");
        }
        assert_eq!(self.stored().await, self.expected(), "positions {:?}", self.next);
    }

    fn expected(&self) -> Vec<i64> {
        (0..self.next[0]).chain(1000..1000 + self.next[1]).collect()
    }

    async fn stored(&self) -> Vec<i64> {
        let url = self.folder.path().display().to_string();
        all(Store::inspect(&Settings { url, ..Settings::default() }).await.unwrap().pin(), "t").await
    }
}

/// Which seeds to try.
pub(super) fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("STORE_SEED") {
        Some(one) => one..one + 1,
        None => 0..number("STORE_SEEDS").unwrap_or(default),
    }
}

/// Runs seeds on several threads; returns the sum of what `of` says of each.
pub(super) async fn sum_over_seeds<F>(seeds: Range<u64>, of: impl Fn(u64) -> F) -> usize
where
    F: Future<Output = usize> + Send + 'static,
{
    let mut sum = 0;
    for chunk in seeds.collect::<Vec<_>>().chunks(4) {
        let running: Vec<_> = chunk.iter().map(|&seed| (seed, tokio::spawn(of(seed)))).collect();
        for (seed, running) in running {
            sum += running.await.unwrap_or_else(|error| panic!("STORE_SEED={seed} fails: {error}"));
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_at_random_are_exact_against_the_model() {
    let seeds = seeds(300);
    let many = seeds.clone().count() > 100;
    let fenced = sum_over_seeds(seeds, |seed| async move {
        let mut writer = Writer::new(seed, Resume::Stored);
        writer.run().await;
        writer.check().await;
        writer.fenced
    })
    .await;
    assert!(!many || fenced > 0, "among many seeds a write of a dead process lands late and is met");
}

/// The same, told no positions: the model must find rows twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_faults_at_random_without_positions_double_rows() {
    let wrong = sum_over_seeds(0..40, |seed| async move {
        let mut writer = Writer::new(seed, Resume::Acknowledged);
        writer.run().await;
        usize::from(writer.stored().await != writer.expected())
    })
    .await;
    assert!(wrong > 0, "no seed of forty doubled a row");
}
