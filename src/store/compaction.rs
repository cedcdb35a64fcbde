//! Which files of a table should become one, and when. Pure: looks at names, sizes and times alone.
//!
//! Every commit leaves a small file. Within a day, sixteen files of about as many rows become one, so that each row is
//! rewritten once for every factor of sixteen. Once the day is over all its files become one run in the order of the
//! table. Rows that come in for such a day later are merged among themselves until they are worth writing it again.

use std::collections::BTreeMap;

use super::file::MICROS_PER_DAY;

/// How many files of about as many rows are merged, and by which factor these differ from the next.
const FAN_IN: usize = 16;
/// Most files that one merge reads at a time: each costs memory for what of it is decoded.
const INPUTS_MAX: usize = 128;
/// How long after its end a day is taken for over.
const GRACE: i64 = 3_600_000_000;
/// Late rows are worth writing a finished day again once they are this part of its rows.
const LATE_PART: u64 = 8;
/// About how large a file becomes: beyond this there is nothing to gain for a reader.
pub(super) const FILE_BYTES: u64 = 128 << 20;

/// What the log says of one live file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub bytes: u64,
    /// None are told of a file that somebody else wrote without counting, or of which rows are deleted in place.
    pub rows: u64,
    /// The UTC day its newest row is of, in days since the epoch; none in a table without a time.
    pub day: Option<i64>,
    /// The times of its oldest and newest row in microseconds, where the table has a time.
    pub times: Option<(i64, i64)>,
    /// Whether it is part of a finished day.
    pub is_finished: bool,
}

/// How much there has to be to gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eagerness {
    /// What pays in the long run.
    AsDue,
    /// As few files as there can be, whatever it costs.
    Thorough,
}

/// Files that should become one, or one run of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub files: Vec<File>,
    /// Whether the result is the day as a whole.
    pub finishes: bool,
}

/// Returns the merges that are due, at most one for each day, the oldest first. `now` is the time of the newest row of the
/// table.
pub(super) fn due(files: Vec<File>, eagerness: Eagerness) -> Vec<Merge> {
    let now = files.iter().filter_map(|file| file.times).map(|(_, newest)| newest).max();
    let mut days: BTreeMap<Option<i64>, Vec<File>> = BTreeMap::new();
    // Where the log does not count rows nothing could be checked.
    for file in files.into_iter().filter(|file| file.rows > 0) {
        days.entry(file.day).or_default().push(file);
    }
    let is_over = |day: Option<i64>| match (day, now) {
        (Some(day), Some(now)) => now >= (day + 1).saturating_mul(MICROS_PER_DAY).saturating_add(GRACE),
        _ => false,
    };
    days.into_iter().filter_map(|(day, files)| of_day(files, is_over(day), eagerness)).collect()
}

fn of_day(mut files: Vec<File>, is_over: bool, eagerness: Eagerness) -> Option<Merge> {
    // Neighbours in time go together.
    files.sort_by(|a, b| (a.times, &a.path).cmp(&(b.times, &b.path)));
    let pays = match eagerness {
        Eagerness::Thorough => is_scattered(&files),
        Eagerness::AsDue => is_over && is_worth_finishing(&files),
    };
    if pays && files.len() <= INPUTS_MAX {
        return Some(Merge { files, finishes: is_over || eagerness == Eagerness::Thorough });
    }
    if pays {
        // Too many at once: the small ones first.
        files.retain(|file| !file.is_finished);
        files.truncate(INPUTS_MAX);
        return (files.len() > 1).then_some(Merge { files, finishes: false });
    }
    tier(files)
}

/// Tells whether files could be fewer.
fn is_scattered(files: &[File]) -> bool {
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    files.iter().any(|file| !file.is_finished) || files.len() as u64 > bytes.div_ceil(FILE_BYTES / 2)
}

fn is_worth_finishing(files: &[File]) -> bool {
    let rows = |finished: bool| -> u64 {
        files.iter().filter(|file| file.is_finished == finished).map(|file| file.rows).sum()
    };
    rows(false) > 0 && rows(false).saturating_mul(LATE_PART) >= rows(true)
}

/// Returns files of about as many rows, where there are enough of them.
fn tier(files: Vec<File>) -> Option<Merge> {
    let mut tiers: BTreeMap<u32, Vec<File>> = BTreeMap::new();
    for file in files.into_iter().filter(|file| !file.is_finished && file.bytes < FILE_BYTES) {
        tiers.entry(file.rows.max(1).ilog(FAN_IN as u64)).or_default().push(file);
    }
    let mut files = tiers.into_values().find(|files| files.len() >= FAN_IN)?;
    files.truncate(INPUTS_MAX);
    Some(Merge { files, finishes: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn file(at: i64, rows: u64) -> File {
        File {
            path: format!("part-{at}"),
            bytes: rows * 4,
            rows,
            day: Some(at.div_euclid(MICROS_PER_DAY)),
            times: Some((at, at + 1)),
            is_finished: false,
        }
    }

    /// Plays days of commits, and returns how often each row was written and the most files there were.
    fn play(commits: i64, every: i64, rows: u64) -> (f64, usize, Vec<File>) {
        let (mut files, mut written, mut most) = (Vec::new(), 0, 0);
        for commit in 0..commits {
            files.push(file(commit * every, rows));
            written += rows;
            loop {
                let merges = due(files.clone(), Eagerness::AsDue);
                if merges.is_empty() {
                    break;
                }
                for merge in merges {
                    files.retain(|file| !merge.files.contains(file));
                    let sum = |of: fn(&File) -> u64| merge.files.iter().map(of).sum::<u64>();
                    let times = (merge.files[0].times.unwrap().0, merge.files.last().unwrap().times.unwrap().1);
                    written += sum(|file| file.rows);
                    files.push(File {
                        rows: sum(|file| file.rows),
                        bytes: sum(|file| file.bytes),
                        times: Some(times),
                        is_finished: merge.finishes,
                        ..merge.files[0].clone()
                    });
                }
            }
            most = most.max(files.len());
        }
        (written as f64 / (commits as u64 * rows) as f64, most, files)
    }

    #[test]
    fn many_commits_become_few_files_for_few_rewrites() {
        let (written, most, files) = play(20_000, 10_000_000, 1000);
        assert!(written < 6.0, "each row was written {written} times");
        assert!(most < 70, "{most} files at once");
        assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), 20_000_000);
        assert_eq!(files.iter().filter(|file| file.is_finished).count(), 2, "one for each day that is over");
    }

    #[test]
    fn a_finished_day_waits_for_what_is_worth_it() {
        let finished = File { is_finished: true, ..file(0, 8000) };
        let later = file(40 * HOUR, 10);
        let late = |rows| file(2 * HOUR, rows);
        assert!(due(vec![finished.clone(), late(999), later.clone()], Eagerness::AsDue).is_empty());
        let merge = due(vec![finished.clone(), late(1000), later.clone()], Eagerness::AsDue);
        assert_eq!(merge, [Merge { files: vec![finished.clone(), late(1000)], finishes: true }]);
        let trickle: Vec<File> = (0..16).map(|n| file(n, 20)).collect();
        let merge = due([vec![finished, later], trickle.clone()].concat(), Eagerness::AsDue);
        assert_eq!(merge, [Merge { files: trickle, finishes: false }]);
    }

    #[test]
    fn thoroughly_everything_is_merged_once() {
        let files: Vec<File> = (0..5).map(|n| file(n * HOUR, 10_u64.pow(n as u32))).collect();
        assert_eq!(due(files.clone(), Eagerness::AsDue), []);
        assert_eq!(due(files.clone(), Eagerness::Thorough), [Merge { files, finishes: true }]);
        assert_eq!(due(vec![File { is_finished: true, ..file(0, 10) }], Eagerness::Thorough), []);
        let full = |at| File { is_finished: true, bytes: FILE_BYTES, ..file(at, 1 << 30) };
        assert_eq!(due(vec![full(0), full(1)], Eagerness::Thorough), []);
    }
}
