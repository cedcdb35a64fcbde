//! The line against a naive fit, merged in parts, and the directions.

use proptest::prelude::*;

use super::*;

/// 2026-01-01, where seconds since 1970 leave a double a fraction of a microsecond.
const START: i64 = 1_767_225_600_000_000;

fn line_of(points: &[(f64, i64)]) -> Line {
    let mut line = Line::default();
    points.iter().for_each(|&(value, ts)| line.add(value, ts));
    line
}

#[test]
fn a_straight_line_gives_its_slope_whatever_the_epoch() {
    for start in [0, START, -START, i64::MAX - 1_000_000_000] {
        let points: Vec<(f64, i64)> =
            (0..100).map(|i| (1e6 - 0.25 * f64::from(i), start + i64::from(i) * 1_000_000)).collect();
        let slope = line_of(&points).slope().unwrap();
        assert!((slope + 0.25).abs() < 1e-9, "{slope} at {start}");
    }
}

#[test]
fn fewer_than_two_distinct_times_have_no_trend() {
    assert_eq!(line_of(&[]).slope(), None);
    assert_eq!(line_of(&[(1.0, START)]).slope(), None);
    assert_eq!(line_of(&[(1.0, START), (5.0, START)]).slope(), None);
    assert_eq!(line_of(&[(1.0, START), (5.0, START)]).direction(0.05), None);
    assert_eq!(line_of(&[(1.0, START), (f64::NAN, START + 1_000_000)]).slope(), None);
}

#[test]
fn less_is_better() {
    let over_a_minute = |from: f64, to: f64| line_of(&[(from, START), (to, START + 60_000_000)]);
    assert_eq!(over_a_minute(100.0, 103.0).direction(THRESHOLD_DEFAULT), Some("stable"));
    assert_eq!(over_a_minute(100.0, 110.0).direction(THRESHOLD_DEFAULT), Some("degrading"));
    assert_eq!(over_a_minute(100.0, 90.0).direction(THRESHOLD_DEFAULT), Some("improving"));
    assert_eq!(over_a_minute(100.0, 110.0).direction(0.2), Some("stable"));
    assert_eq!(over_a_minute(-1.0, 1.0).direction(THRESHOLD_DEFAULT), Some("degrading"));
    assert_eq!(over_a_minute(0.0, 0.0).direction(THRESHOLD_DEFAULT), Some("stable"));
}

proptest! {
    #[test]
    fn merging_parts_equals_the_whole(
        points in prop::collection::vec((-1e6..1e6_f64, 0_i64..3_600_000_000, 0_usize..4), 3..300)
    ) {
        let all: Vec<(f64, i64)> = points.iter().map(|&(value, at, _)| (value, START + at)).collect();
        let whole = line_of(&all);
        let mut merged = Line::default();
        for part in [2, 0, 3, 1] {
            let mine: Vec<(f64, i64)> =
                points.iter().filter(|(_, _, of)| *of == part).map(|&(value, at, _)| (value, START + at)).collect();
            merged.merge(&line_of(&mine));
        }
        let n = all.len() as f64;
        let seconds = |ts: i64| (ts - START) as f64 / 1e6;
        let (mean_t, mean_v) = (
            all.iter().map(|&(_, ts)| seconds(ts)).sum::<f64>() / n,
            all.iter().map(|&(value, _)| value).sum::<f64>() / n,
        );
        let naive_tt: f64 = all.iter().map(|&(_, ts)| (seconds(ts) - mean_t).powi(2)).sum();
        let naive_tv: f64 = all.iter().map(|&(value, ts)| (seconds(ts) - mean_t) * (value - mean_v)).sum();
        let scale = (naive_tt * all.iter().map(|&(v, _)| (v - mean_v).powi(2)).sum::<f64>()).sqrt();
        prop_assert_eq!((merged.count, merged.ts_min, merged.ts_max), (whole.count, whole.ts_min, whole.ts_max));
        for line in [merged, whole] {
            prop_assert!((line.m_tt - naive_tt).abs() <= 1e-9 * naive_tt);
            prop_assert!((line.m_tv - naive_tv).abs() <= 1e-9 * scale);
        }
    }
}
