//! The sketch against exact quantiles: error bound, order, merging, encoding.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const QUANTILES: [f64; 9] = [0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.95, 0.999, 1.0];

fn sketch_of(values: &[f64]) -> Sketch {
    let mut sketch = Sketch::default();
    values.iter().for_each(|&value| sketch.add(value));
    sketch
}

fn bytes_of(sketch: &Sketch) -> Vec<u8> {
    let mut bytes = Vec::new();
    sketch.encode(&mut bytes);
    bytes
}

/// The definition, spelled out: linear between the order statistics around `q * (n - 1)`.
fn exact(values: &[f64], q: f64) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    let weight = rank - rank.floor();
    (low * (1.0 - weight) + high * weight, low.abs().max(high.abs()))
}

fn check_bound(what: &str, values: &[f64]) {
    let sketch = sketch_of(values);
    for q in QUANTILES {
        let (expected, scale) = exact(values, q);
        let got = sketch.quantile(q).unwrap();
        let tolerance = if values.len() <= EXACT_MAX { 1e-12 } else { RELATIVE_ERROR_MAX * (1.0 + 1e-9) };
        assert!((got - expected).abs() <= tolerance * scale, "{what} q={q}: expected {expected}, got {got}");
    }
}

#[test]
fn the_error_bound_holds_for_every_shape() {
    let mut rng = StdRng::seed_from_u64(7);
    let n = 20_000;
    let mut draw = |of: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
        (0..n).map(|_| of(rng.random::<f64>(), rng.random::<f64>())).collect()
    };
    let normal = |a: f64, b: f64| (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    check_bound("uniform", &draw(&|a, _| a * 100.0));
    check_bound("lognormal", &draw(&|a, b| (-3.0 + 1.5 * normal(a, b)).exp()));
    check_bound("bimodal", &draw(&|a, b| if a < 0.5 { 0.01 + b * 1e-4 } else { 1e6 + b }));
    check_bound("signed", &draw(&|a, b| normal(a, b) * 1e3));
    check_bound("negative", &draw(&|a, b| -(normal(a, b) * 2.0).exp()));
    check_bound("huge range", &draw(&|a, b| 10_f64.powf(a * 600.0 - 300.0) * if b < 0.5 { -1.0 } else { 1.0 }));
    check_bound("mostly zero", &draw(&|a, b| if a < 0.9 { 0.0 } else { b }));
}

#[test]
fn constants_and_extremes_are_exact() {
    for constant in [0.0, 1.0, -1.0, 0.1, 1e-9, 1e12, f64::MAX, f64::MIN, f64::MIN_POSITIVE] {
        let sketch = sketch_of(&vec![constant; 1_000]);
        for q in QUANTILES {
            assert_eq!(sketch.quantile(q), Some(constant), "{constant} q={q}");
        }
    }
    let values: Vec<f64> = (0..1_000).map(|i| 0.123 + f64::from(i) * 0.457).collect();
    let sketch = sketch_of(&values);
    assert_eq!((sketch.quantile(0.0), sketch.quantile(1.0)), (Some(values[0]), Some(values[999])));
}

#[test]
fn nothing_and_what_is_no_number_have_no_quantile() {
    assert_eq!(Sketch::default().quantile(0.5), None);
    assert_eq!(sketch_of(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]).quantile(0.5), None);
    assert_eq!(sketch_of(&[-0.0]).quantile(0.5).map(f64::to_bits), Some(0.0_f64.to_bits()));
}

#[test]
fn every_bucket_has_its_own_counter_and_its_midpoint_within_it() {
    // The buckets of infinity and NaN are never asked for.
    let last = bucket_of(f64::MAX);
    assert!(u64::from(last.unsigned_abs()) <= BUCKETS_MAX / 2);
    for bucket in (-last..last).step_by(7).chain(-300..300) {
        let (band, value) = place_of(bucket);
        assert_eq!(bucket_at(band, value), bucket);
        assert_eq!(bucket_of(midpoint_of(bucket)), bucket);
        assert!(midpoint_of(bucket) < midpoint_of(bucket + 1));
    }
}

#[test]
fn a_dense_sketch_stays_small() {
    let mut rng = StdRng::seed_from_u64(1);
    let latencies: Vec<f64> = (0..100_000).map(|_| 0.001 * (1.0 / (1.0 - rng.random::<f64>())).powf(0.8)).collect();
    let sketch = sketch_of(&latencies);
    assert!(matches!(&sketch.0, Form::Buckets(buckets) if matches!(buckets.store, Store::Dense(_))));
    assert!(sketch.heap_bytes() < 64 << 10, "{} bytes", sketch.heap_bytes());
    assert!(bytes_of(&sketch).len() < 8 << 10, "{} bytes encoded", bytes_of(&sketch).len());
}

#[test]
fn what_is_not_a_sketch_is_refused() {
    let good = bytes_of(&sketch_of(&(0..1_000).map(f64::from).collect::<Vec<_>>()));
    assert!(matches!(Sketch::decode(&[]), Err(DecodeError::Truncated { .. })));
    assert!(matches!(Sketch::decode(&[9, 0]), Err(DecodeError::Version { got: 9 })));
    assert!(matches!(Sketch::decode(&[VERSION, 7]), Err(DecodeError::Kind { got: 7 })));
    assert!(matches!(Sketch::decode(&good[..good.len() - 1]), Err(DecodeError::Truncated { .. })));
    assert!(matches!(Sketch::decode(&[&good[..], &[0]].concat()), Err(DecodeError::Malformed { .. })));
    assert!(matches!(
        Sketch::decode(&[&[VERSION, KIND_EXACT][..], &f64::NAN.to_le_bytes()].concat()),
        Err(DecodeError::Malformed { .. })
    ));
    assert!(Sketch::decode(&good).is_ok());
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -1e3..1e3_f64,
        2 => (-300.0..300.0_f64).prop_map(|e| 10_f64.powf(e)),
        1 => Just(0.0),
        1 => any::<f64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_parts_equals_the_whole(values in prop::collection::vec((value(), 0_usize..4), 0..1_500)) {
        let whole = sketch_of(&values.iter().map(|(value, _)| *value).collect::<Vec<_>>());
        let mut merged = Sketch::default();
        for part in (0..4).rev() {
            let mine: Vec<f64> = values.iter().filter(|(_, of)| *of == part).map(|(value, _)| *value).collect();
            // Through the encoding, as states travel.
            merged.merge(&Sketch::decode(&bytes_of(&sketch_of(&mine))).unwrap());
        }
        prop_assert_eq!(merged.count(), whole.count());
        prop_assert_eq!(bytes_of(&merged), bytes_of(&whole));
        for q in QUANTILES {
            prop_assert_eq!(merged.quantile(q), whole.quantile(q));
        }
    }

    #[test]
    fn quantiles_ascend_with_q_and_stay_within_the_values(values in prop::collection::vec(value(), 1..600)) {
        let sketch = sketch_of(&values);
        let quantiles: Vec<f64> = QUANTILES.iter().filter_map(|&q| sketch.quantile(q)).collect();
        prop_assert!(quantiles.windows(2).all(|pair| pair[0] <= pair[1]), "{:?}", quantiles);
    }

    #[test]
    fn decoding_any_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_u8..2) {
        let _ = Sketch::decode(&bytes);
        if let Ok(sketch) = Sketch::decode(&[&[VERSION, kind][..], &bytes].concat()) {
            let _ = sketch.quantile(0.5);
        }
    }
}
