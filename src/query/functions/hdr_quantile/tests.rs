//! The vectorised form: groups, filters, states, memory accounting.

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use proptest::prelude::*;

use super::*;

fn quantiles(q: f64) -> SketchGroups {
    SketchGroups { sketches: Vec::new(), heap_bytes: 0, input_is_sketch: false, q: Some(q) }
}

fn column(values: impl IntoIterator<Item = Option<f64>>) -> Vec<ArrayRef> {
    vec![Arc::new(values.into_iter().collect::<Float64Array>())]
}

#[test]
fn groups_are_kept_apart_and_emitted_in_order() {
    let mut groups = quantiles(0.5);
    let values = column([Some(1.0), Some(10.0), Some(3.0), None, Some(30.0), Some(f64::NAN)]);
    let filter = BooleanArray::from(vec![Some(true), Some(true), Some(true), Some(true), None, Some(true)]);
    groups.update_batch(&values, &[0, 1, 0, 0, 1, 2], Some(&filter), 3).unwrap();
    let first = groups.evaluate(EmitTo::First(1)).unwrap();
    assert_eq!(first.as_primitive::<Float64Type>().value(0), 2.0);
    let rest = groups.evaluate(EmitTo::All).unwrap();
    let rest = rest.as_primitive::<Float64Type>();
    assert_eq!(rest.value(0), 10.0);
    assert!(rest.is_null(1), "a group of NaN alone has no quantile");
    assert_eq!(groups.heap_bytes, 0);
}

#[test]
fn memory_is_accounted_through_every_form() {
    let mut groups = quantiles(0.5);
    for round in 0..50 {
        let values = column((0..1_000).map(|i| Some(1.001_f64.powi(i * 20) * f64::from(round + 1))));
        groups.update_batch(&values, &vec![round as usize % 3; 1_000], None, 3).unwrap();
        let held: usize = groups.sketches.iter().map(Sketch::heap_bytes).sum();
        assert_eq!(groups.heap_bytes, held);
        assert!(groups.size() >= held);
    }
    let taken = groups.state(EmitTo::First(2)).unwrap();
    assert_eq!(taken[0].len(), 2);
    assert_eq!(groups.heap_bytes, groups.sketches[0].heap_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn merged_states_equal_the_whole(
        rows in prop::collection::vec((prop::option::of(-1e6..1e6_f64), 0_usize..3), 1..900),
        cut in 0_usize..900,
    ) {
        let cut = cut.min(rows.len());
        let (values, of): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
        let mut whole = quantiles(0.9);
        whole.update_batch(&column(values.clone()), &of, None, 3).unwrap();
        let mut merged = quantiles(0.9);
        let each = merged.convert_to_state(&column(values[cut..].to_vec()), None).unwrap();
        merged.merge_batch(&each, &of[cut..], 3).unwrap();
        let mut part = quantiles(0.9);
        part.update_batch(&column(values[..cut].to_vec()), &of[..cut], None, 3).unwrap();
        let state = part.state(EmitTo::All).unwrap();
        merged.merge_batch(&state, &[0, 1, 2], 3).unwrap();
        prop_assert_eq!(&merged.evaluate(EmitTo::All).unwrap(), &whole.evaluate(EmitTo::All).unwrap());
    }
}
