//! The winning point, in any order and over merged states.

use arrow::array::AsArray;
use proptest::prelude::*;

use super::*;

fn columns(points: &[(Option<f64>, Option<i64>)]) -> Vec<ArrayRef> {
    vec![
        Arc::new(points.iter().map(|(value, _)| *value).collect::<Float64Array>()),
        Arc::new(points.iter().map(|(_, ts)| *ts).collect::<TimestampMicrosecondArray>()),
    ]
}

fn winner(end: End, points: &[(Option<f64>, Option<i64>)]) -> Option<f64> {
    let mut groups = Points::<f64>::new(end);
    groups.update_batch(&columns(points), &vec![0; points.len()], None, 1).unwrap();
    let value = groups.evaluate(EmitTo::All).unwrap();
    let value = value.as_primitive::<arrow::datatypes::Float64Type>();
    value.is_valid(0).then(|| value.value(0))
}

#[test]
fn nulls_nan_and_ties() {
    assert_eq!(winner(End::Last, &[]), None);
    assert_eq!(winner(End::Last, &[(None, Some(9)), (Some(1.0), None), (Some(f64::NAN), Some(8))]), None);
    assert_eq!(winner(End::Last, &[(Some(2.0), Some(5)), (Some(7.0), Some(5)), (Some(3.0), Some(5))]), Some(7.0));
    assert_eq!(winner(End::First, &[(Some(2.0), Some(5)), (Some(7.0), Some(5)), (Some(9.0), Some(6))]), Some(7.0));
}

#[test]
fn strings_are_held_and_accounted() {
    let mut groups = Points::<Box<str>>::new(End::Last);
    let empty = groups.size();
    let values: ArrayRef = Arc::new(StringArray::from(vec!["healthy", "failing"]));
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, 2]));
    groups.update_batch(&[values, times], &[0, 0], None, 1).unwrap();
    assert!(groups.size() >= empty + "failing".len());
    assert_eq!(groups.heap_bytes, "failing".len());
    let state = groups.state(EmitTo::All).unwrap();
    assert_eq!(groups.heap_bytes, 0);
    groups.merge_batch(&state, &[0], 1).unwrap();
    assert_eq!(groups.evaluate(EmitTo::All).unwrap().as_string::<i32>().value(0), "failing");
}

proptest! {
    #[test]
    fn merged_states_equal_the_whole(
        points in prop::collection::vec((prop::option::of(-9.0..9.0_f64), prop::option::of(0_i64..20)), 0..60),
        cut in 0_usize..60,
        is_last in any::<bool>(),
    ) {
        let end = if is_last { End::Last } else { End::First };
        let cut = cut.min(points.len());
        let mut merged = Points::<f64>::new(end);
        // One part as states of single rows, the other as the state of a group; the later part first.
        let rows = merged.convert_to_state(&columns(&points[cut..]), None).unwrap();
        merged.merge_batch(&rows, &vec![0; points.len() - cut], 1).unwrap();
        let mut part = Points::<f64>::new(end);
        part.update_batch(&columns(&points[..cut]), &vec![0; cut], None, 1).unwrap();
        let state = part.state(EmitTo::All).unwrap();
        merged.merge_batch(&state, &[0], 1).unwrap();
        let got = merged.evaluate(EmitTo::All).unwrap();
        let got = got.as_primitive::<arrow::datatypes::Float64Type>();
        prop_assert_eq!(got.is_valid(0).then(|| got.value(0)), winner(end, &points));
    }
}
