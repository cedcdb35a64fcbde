//! Tests of group outliers.

use super::*;

fn at(window: usize) -> EventTime {
    EventTime::from_micros(window as i64 * 60_000_000)
}

/// Returns the members detected in each window, `rows` holding the values of members a, b, c, ….
fn detected(rows: &[&[f64]]) -> Vec<String> {
    let mut group = GroupOutlier::new(Persistence::default());
    let names = ["a", "b", "c", "d", "e", "f"];
    rows.iter()
        .enumerate()
        .map(|(window, values)| {
            let members: Vec<(&str, f64)> = names.into_iter().zip(values.iter().copied()).collect();
            let scores = group.update(at(window), &members).unwrap();
            scores.into_iter().filter(|score| score.detected).map(|score| score.member).collect()
        })
        .collect()
}

#[test]
fn a_member_that_drifts_is_detected_in_its_third_window() {
    let quiet: &[f64] = &[10.0, 10.2, 9.9, 10.1];
    let drift: &[f64] = &[10.0, 10.2, 25.0, 10.1];
    assert_eq!(detected(&[quiet, drift, drift, drift, drift, quiet]), ["", "", "", "c", "c", ""]);
}

#[test]
fn three_of_five_need_not_be_in_a_row() {
    let quiet: &[f64] = &[10.0, 10.2, 9.9];
    let apart: &[f64] = &[10.0, 90.0, 9.9];
    assert_eq!(detected(&[apart, quiet, apart, quiet, apart, quiet, quiet, apart]), ["", "", "", "", "b", "", "", ""]);
}

#[test]
fn two_halves_have_no_outliers() {
    let halves: &[f64] = &[1.0, 1.0, 100.0, 100.0];
    assert_eq!(detected(&[halves; 5]).concat(), "");
}

#[test]
fn members_that_nearly_agree_have_no_outliers() {
    let equal: &[f64] = &[100.0, 100.0, 100.0, 100.0, 101.0];
    assert_eq!(detected(&[equal; 5]).concat(), "");
}

#[test]
fn one_differs_from_many_equal() {
    let values: &[f64] = &[0.0, 0.0, 0.0, 0.0, 0.1];
    assert_eq!(detected(&[values; 3]), ["", "", "e"]);
}

#[test]
fn a_load_that_rises_everywhere_is_no_outlier() {
    let rows: Vec<Vec<f64>> = (0..20).map(|w| (0..5).map(|m| f64::from(w) * 50.0 + f64::from(m)).collect()).collect();
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    assert_eq!(detected(&rows).concat(), "");
}

#[test]
fn too_few_to_compare_is_an_abstention() {
    let mut group = GroupOutlier::new(Persistence::default());
    let window = [("a", 1.0), ("b", 2.0), ("c", f64::NAN)];
    assert_eq!(group.update(at(0), &window), Err(Abstention::TooFew { have: 2, need: 3 }));
    assert_eq!(group, GroupOutlier::new(Persistence::default()));
}

#[test]
fn a_window_twice_counts_once() {
    let mut group = GroupOutlier::new(Persistence::default());
    let window = [("a", 1.0), ("b", 2.0), ("c", 3.0)];
    assert!(group.update(at(1), &window).is_ok());
    assert_eq!(group.update(at(1), &window), Err(Abstention::OutOfOrder { last: at(1), at: at(1) }));
}

#[test]
fn members_gone_for_long_are_forgotten() {
    let mut group = GroupOutlier::new(Persistence::default());
    for window in 0..1000 {
        let names: Vec<String> = (0..3).map(|member| format!("pod-{window}-{member}")).collect();
        let members: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), 1.0)).collect();
        group.update(at(window), &members).unwrap();
    }
    assert!(group.members.len() <= 3 * 6, "{}", group.members.len());
}

#[test]
fn one_column_of_several_suffices_to_stand_out() {
    // Ordinary in the first column, far off in the second.
    let x: Vec<f64> = (0..9).map(f64::from).chain([4.0]).collect();
    let far: Vec<f64> = (0..9).map(|_| 5.0).chain([500.0]).collect();
    let judged = apart(&[x, far]);
    assert!(judged.last().unwrap().stands_out);
    assert_eq!(judged.iter().filter(|point| point.stands_out).count(), 1);
}

#[test]
fn huge_and_tiny_values_keep_scores_in_range() {
    for values in [[f64::MAX, -f64::MAX, 0.0, 1.0], [f64::MIN_POSITIVE; 4], [0.0, 0.0, 0.0, f64::MAX]] {
        let mut group = GroupOutlier::new(Persistence::default());
        let members: Vec<(&str, f64)> = ["a", "b", "c", "d"].into_iter().zip(values).collect();
        for score in group.update(at(0), &members).unwrap() {
            assert!((0.0..1.0).contains(&score.score), "{score:?}");
        }
    }
}

#[test]
fn a_restored_group_continues_alike() {
    let apart = [("a", 1.0), ("b", 1.1), ("c", 9.0), ("d", 1.0)];
    let mut group = GroupOutlier::new(Persistence::default());
    (0..2).for_each(|window| drop(group.update(at(window), &apart).unwrap()));
    let mut restored: GroupOutlier = serde_json::from_str(&serde_json::to_string(&group).unwrap()).unwrap();
    assert_eq!(group.update(at(2), &apart), restored.update(at(2), &apart));
    assert_eq!(group, restored);
}
