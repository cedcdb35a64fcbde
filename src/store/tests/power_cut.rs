//! Fault 21: the power goes at every step a commit or a merge takes on the disk. What was acknowledged is there afterwards, whole,
//! and nothing else but perhaps the one commit that was under way. The controls forget to sync, and lose.

use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::simulated_disk::{Call, Forgets, Leaves, SimulatedDisk, Trace};
use super::*;

const COMMITS: i64 = 3;

/// A disk that is one folder of the real one, with a store on it.
struct Machine {
    top: tempfile::TempDir,
    disk: Arc<SimulatedDisk>,
}

impl Machine {
    fn new(forgets: Forgets) -> Machine {
        Machine { top: tempfile::tempdir().unwrap(), disk: Arc::new(SimulatedDisk::new(forgets)) }
    }

    async fn open(&self) -> Result<Store, StoreError> {
        // Two folders deep: the store makes both, and has to see to it that both stay.
        open_on(&self.top.path().join("srv/data"), pair(), self.disk.clone()).await
    }

    /// Commits the row `n` to both tables and notes that it is done.
    async fn commit(&self, store: &Store, n: i64) -> Result<(), StoreError> {
        append_pair(store, n..n + 1, "a");
        store.commit().await?;
        self.disk.acknowledge(n + 1);
        Ok(())
    }

    async fn run(&self) -> Trace {
        let store = self.open().await.unwrap();
        for n in 0..COMMITS {
            self.commit(&store, n).await.unwrap();
        }
        merge_all(&store).await;
        self.disk.trace()
    }

    /// Cuts the power after so many steps and tells what is wrong with what is left, if anything is.
    async fn cut(&self, trace: &Trace, steps: usize, leaves: Leaves, random: &mut StdRng) -> Result<(), String> {
        let left = tempfile::tempdir().unwrap();
        trace.after_cut(steps, self.top.path(), leaves, random, left.path());
        let wrong = wrong_with(&left.path().join("srv/data"), trace.acknowledged(steps)).await;
        wrong.map_err(|why| format!("power cut before step {steps}, {}, leaving {leaves:?}: {why}", trace.step(steps)))
    }

    /// Cuts the power now, leaving nothing that was not synced; all must be well.
    async fn cut_the_end(&self) {
        let trace = self.disk.trace();
        let mut random = StdRng::seed_from_u64(0);
        self.cut(&trace, trace.steps(), Leaves::Nothing, &mut random).await.unwrap();
    }

    /// Cuts the power at every step, leaving one thing after the other.
    async fn cut_everywhere(&self, trace: &Trace, random: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut random = StdRng::seed_from_u64(random);
        for steps in 0..=trace.steps() {
            for leaves in [Leaves::Nothing, Leaves::Names, Leaves::Everything, Leaves::Anything, Leaves::Anything] {
                wrong.extend(self.cut(trace, steps, leaves, &mut random).await.err());
            }
        }
        wrong
    }
}

/// Opens what a power cut left, and goes on with it.
async fn wrong_with(folder: &Path, acknowledged: i64) -> Result<(), String> {
    let settings = Settings { url: folder.display().to_string(), durable: false, ..Settings::default() };
    let store = Store::open(&settings, pair()).await.map_err(|error| format!("{error:?}"))?;
    let mut stands = Vec::new();
    for table in ["t", "u"] {
        let position = store.position(table, "a").await.map_err(|error| format!("{error:?}"))?.unwrap_or(0);
        let found = values(&store, table).await?;
        if found != (0..position).collect::<Vec<_>>() {
            return Err(format!("{table} holds {found:?} at position {position}"));
        }
        if position < acknowledged || position > acknowledged + 1 {
            return Err(format!("{table} is at {position}, and {acknowledged} were acknowledged"));
        }
        stands.push(position);
    }
    let [t, u] = stands[..] else { unreachable!("two tables") };
    if u > t {
        return Err(format!("u is at {u}, ahead of t at {t}, whose rows it refers to"));
    }
    store.append("t", Some(daily_rows(t..9)), &[("a", 9)]).map_err(|error| format!("{error:?}"))?;
    store.commit().await.map_err(|error| format!("the next commit: {error:?}"))?;
    let found = values(&store, "t").await?;
    if found != (0..9).collect::<Vec<_>>() {
        return Err(format!("after the next commit t holds {found:?}"));
    }
    Ok(())
}

/// Returns the values of a table, or why it cannot be read: files may be torn.
async fn values(store: &Store, table: &str) -> Result<Vec<i64>, String> {
    let pinned = store.pin();
    let table = table.to_owned();
    tokio::spawn(async move { all(pinned, &table).await }).await.map_err(|_| "a file cannot be read".to_owned())
}

#[tokio::test]
async fn fault_21_a_power_cut_at_any_step_takes_back_nothing_that_was_acknowledged() {
    let machine = Machine::new(Forgets::default());
    let trace = machine.run().await;
    assert_eq!(trace.acknowledged(trace.steps()), COMMITS);
    assert!(trace.steps() > 20 * COMMITS as usize, "{} steps are no commits", trace.steps());
    let wrong = machine.cut_everywhere(&trace, 21).await;
    assert!(wrong.is_empty(), "{} cuts went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Cuts the power where the run was over, on a disk that forgets; returns what is wrong with each thing left.
async fn cut_at_the_end(forgets: Forgets) -> Vec<String> {
    let machine = Machine::new(forgets);
    let trace = machine.run().await;
    let mut wrong = Vec::new();
    let mut random = StdRng::seed_from_u64(21);
    for leaves in [Leaves::Nothing, Leaves::Names, Leaves::Anything, Leaves::Anything] {
        wrong.extend(machine.cut(&trace, trace.steps(), leaves, &mut random).await.err());
    }
    wrong
}

#[tokio::test]
async fn fault_21_control_without_any_sync_commits_are_lost() {
    let wrong = cut_at_the_end(Forgets { bytes: true, names: true }).await;
    assert!(wrong.iter().any(|why| why.contains("t is at 0, and 3 were acknowledged")), "{wrong:?}");
    assert!(wrong.len() >= 3, "{wrong:?}");
}

#[tokio::test]
async fn fault_21_control_without_syncs_of_files_commits_are_torn() {
    let wrong = cut_at_the_end(Forgets { bytes: true, names: false }).await;
    assert!(wrong.len() >= 3, "{wrong:?}");
}

#[tokio::test]
async fn fault_21_control_without_syncs_of_folders_commits_are_lost() {
    let wrong = cut_at_the_end(Forgets { bytes: false, names: true }).await;
    assert!(wrong.iter().any(|why| why.contains("t is at 0, and 3 were acknowledged")), "{wrong:?}");
}

/// Makes the n-th call from now on fail, once.
fn fail_once(disk: &SimulatedDisk, which: usize, only: Option<Call>, kind: ErrorKind) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    disk.fail(move |call, _| {
        let counts = only.is_none_or(|only| only == call);
        (counts && counted.fetch_add(1, Ordering::SeqCst) == which).then(|| Error::from(kind))
    });
    calls
}

/// A name that was given and then not synced is visible, and so passes for landed; it must not be acknowledged before it
/// is durable.
#[tokio::test]
async fn fault_21_a_sync_that_failed_is_made_up_for_before_anything_is_acknowledged() {
    for which in 0.. {
        let machine = Machine::new(Forgets::default());
        let store = machine.open().await.unwrap();
        machine.commit(&store, 0).await.unwrap();
        let calls = fail_once(&machine.disk, which, Some(Call::SyncFolder), ErrorKind::Other);
        let mut landed = machine.commit(&store, 1).await;
        if let Err(error) = &landed {
            assert!(error.retriable(), "{error:?}");
            landed = store.commit().await.map(|_| machine.disk.acknowledge(2));
        }
        landed.unwrap();
        machine.cut_the_end().await;
        if calls.load(Ordering::SeqCst) <= which {
            assert!(which >= 5, "a commit to two tables, one with a new day, syncs five folders, not {which}");
            return;
        }
    }
}

/// Killed after it made a folder and before it synced it, say: who comes next finds the folder and must not trust it.
#[tokio::test]
async fn fault_21_what_a_killed_process_left_unsynced_is_settled_by_the_next() {
    for which in 0.. {
        let machine = Machine::new(Forgets::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        // From this call on nothing is done any more, as after a kill.
        machine
            .disk
            .fail(move |_, _| (counted.fetch_add(1, Ordering::SeqCst) >= which).then(|| Error::from(ErrorKind::Other)));
        if let Ok(store) = machine.open().await {
            let _ = machine.commit(&store, 0).await;
        }
        machine.disk.heal();
        let store = machine.open().await.unwrap();
        let t = store.position("t", "a").await.unwrap().unwrap_or(0);
        let u = store.position("u", "a").await.unwrap().unwrap_or(0);
        // What the next process was shown it builds on: that must not go away any more.
        machine.disk.acknowledge(u);
        machine.cut_the_end().await;
        // Into the same folders as before, and no new ones.
        store.append("t", Some(daily_rows(t..1)), &[("a", 1)]).unwrap();
        store.append("u", Some(rows(u..1)), &[("a", 1)]).unwrap();
        store.commit().await.unwrap();
        machine.disk.acknowledge(1);
        machine.cut_the_end().await;
        if calls.load(Ordering::SeqCst) <= which {
            assert!(which > 30, "opening and a commit take more than {which} calls");
            return;
        }
    }
}

/// The same where the next is there already, and learns from the other's commit where its sources stand.
#[tokio::test]
async fn fault_21_what_a_killed_writer_left_unsynced_is_settled_by_one_that_shares() {
    for which in 0.. {
        let machine = Machine::new(Forgets::default());
        let folder = machine.top.path().join("srv/data");
        let join = || open_sharing(&folder, pair(), Some(machine.disk.clone()), |objects| objects);
        let (one, other) = (join().await.unwrap(), join().await.unwrap());
        machine.commit(&one, 0).await.unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        machine
            .disk
            .fail(move |_, _| (counted.fetch_add(1, Ordering::SeqCst) >= which).then(|| Error::from(ErrorKind::Other)));
        let _ = machine.commit(&one, 1).await;
        drop(one);
        machine.disk.heal();
        let mut claimed = Vec::new();
        for table in ["t", "u"] {
            claimed.push((table, other.claim(table, &["a"]).await.unwrap()[0]));
        }
        let (trace, left) = (machine.disk.trace(), tempfile::tempdir().unwrap());
        let mut random = StdRng::seed_from_u64(0);
        trace.after_cut(trace.steps(), machine.top.path(), Leaves::Nothing, &mut random, left.path());
        let url = left.path().join("srv/data").display().to_string();
        let after = Store::open(&Settings { url, durable: false, ..Settings::default() }, pair()).await.unwrap();
        for (table, stands) in claimed {
            assert_eq!(after.position(table, "a").await.unwrap(), stands, "{table}, killed at call {which}");
        }
        if calls.load(Ordering::SeqCst) <= which {
            assert!(which > 15, "a commit to two tables takes more than {which} calls");
            return;
        }
    }
}

#[tokio::test]
async fn fault_21_a_power_cut_while_a_checkpoint_is_written_leaves_the_log_readable() {
    let machine = Machine::new(Forgets::default());
    let store = open_on(&machine.top.path().join("srv/data"), vec![spec("t")], machine.disk.clone()).await.unwrap();
    for n in 0..101 {
        store.append("t", Some(rows([n])), &[("a", n + 1)]).unwrap();
        store.commit().await.unwrap();
        machine.disk.acknowledge(n + 1);
    }
    let before = machine.disk.trace().steps();
    store.maintain().await.unwrap();
    let trace = machine.disk.trace();
    assert!(trace.steps() >= before + 8, "a checkpoint is two files");
    let mut random = StdRng::seed_from_u64(100);
    for steps in before..=trace.steps() {
        for leaves in [Leaves::Nothing, Leaves::Names, Leaves::Anything] {
            let left = tempfile::tempdir().unwrap();
            trace.after_cut(steps, machine.top.path(), leaves, &mut random, left.path());
            let url = left.path().join("srv/data").display().to_string();
            let settings = Settings { url, durable: false, ..Settings::default() };
            let store = Store::open(&settings, vec![spec("t")]).await.unwrap();
            assert_eq!(store.position("t", "a").await.unwrap(), Some(101));
            assert_eq!(all(store.pin(), "t").await, (0..101).collect::<Vec<_>>());
        }
    }
}
