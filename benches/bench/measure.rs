//! Wall and CPU time, memory, medians, and the file of results.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

/// What one repetition took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    pub wall_seconds: f64,
    /// Of all threads, user and system.
    pub cpu_seconds: f64,
}

/// Runs something once and says what it took.
pub fn once<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Took)> {
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let done = f()?;
    Ok((done, Took { wall_seconds: wall.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - cpu }))
}

fn cpu_seconds() -> f64 {
    // SAFETY: a zeroed rusage is a valid value of the plain C struct, and the call only writes to it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Returns the memory this process holds now, in MiB.
pub fn resident_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("failed to read our own status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("the status has no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS has no number")?.parse()?;
    Ok(kib / 1024.0)
}

/// All figures of a run.
#[derive(Default)]
pub struct Results {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Results {
    /// Takes the values of all repetitions of one figure.
    pub fn add(&mut self, name: &str, unit: &'static str, mut values: Vec<f64>) {
        values.sort_by(f64::total_cmp);
        let row = Row { name: name.to_owned(), unit, values };
        println!("{:<44} {:>14.3} {:<24} [{:.3} .. {:.3}]", row.name, row.median(), row.unit, row.min(), row.max());
        self.rows.push(row);
    }

    /// Adds rates and CPU of repetitions over the same number of records.
    pub fn add_rates(&mut self, name: &str, what: &'static str, records: usize, took: &[Took]) {
        let n = records as f64;
        let per = |f: fn(&Took) -> f64| took.iter().map(move |t| n / f(t)).collect::<Vec<f64>>();
        self.add(&format!("{name}/per_second"), what, per(|t| t.wall_seconds));
        self.add(&format!("{name}/per_core_second"), what, per(|t| t.cpu_seconds));
        let cpu = took.iter().map(|t| t.cpu_seconds * 1e6 / n).collect();
        self.add(&format!("{name}/cpu_per_million"), "seconds", cpu);
    }

    /// Writes the file; figures of benchmarks that were filtered out keep their last value.
    pub fn write(&self) -> Result<()> {
        let path = build_folder()?.join("bench-results.csv");
        let mut rows: BTreeMap<String, String> = BTreeMap::new();
        if let Ok(old) = std::fs::read_to_string(&path) {
            let kept =
                old.lines().skip(1).filter_map(|line| Some((line.split(',').next()?.to_owned(), line.to_owned())));
            rows.extend(kept);
        }
        for row in &self.rows {
            let (value, min, max) = (row.median(), row.min(), row.max());
            rows.insert(row.name.clone(), format!("{},{value},{},{min},{max}", row.name, row.unit));
        }
        let mut file = std::fs::File::create(&path)?;
        writeln!(file, "name,value,unit,min,max")?;
        for row in rows.values() {
            writeln!(file, "{row}")?;
        }
        println!("written to {}", path.display());
        Ok(())
    }
}

impl Row {
    fn median(&self) -> f64 {
        self.values.get(self.values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn min(&self) -> f64 {
        self.values.first().copied().unwrap_or(f64::NAN)
    }

    fn max(&self) -> f64 {
        self.values.last().copied().unwrap_or(f64::NAN)
    }
}

/// The folder that holds `release/deps/<this program>`.
fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(3).context("a benchmark lies three folders deep in the build folder")?.to_owned())
}
