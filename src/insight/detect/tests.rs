//! Tests of the detector: what it must find, what it must leave alone, and that it restores to the bit.

use super::*;

const MINUTE: i64 = 60_000_000;

/// Numbers in [0, 1) from a seed (xorshift64), so that every run sees the same noise.
struct Noise(u64);

impl Noise {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About standard normal: the sum of twelve uniforms.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

fn at(minute: usize) -> EventTime {
    EventTime::from_micros(minute as i64 * MINUTE)
}

/// Returns the minutes of `values`, one a minute, at which something was detected.
fn detections(values: &[f64]) -> Vec<usize> {
    let mut detector = ResidualDetector::new();
    (0..values.len())
        .filter(|&minute| detector.update(at(minute), values[minute]).is_ok_and(|score| score.detected))
        .collect()
}

fn noise(len: usize) -> Vec<f64> {
    let mut noise = Noise(7);
    (0..len).map(|_| 100.0 + 5.0 * noise.normal()).collect()
}

#[test]
fn the_first_points_are_learned_but_not_scored() {
    let mut detector = ResidualDetector::new();
    for minute in 0..ResidualDetector::WARM as usize {
        let need = ResidualDetector::WARM;
        assert_eq!(detector.update(at(minute), 1.0), Err(Abstention::Warming { have: minute as u32 + 1, need }));
    }
    assert!(detector.update(at(1000), 1.0).is_ok());
}

#[test]
fn a_spike_is_found_at_once_and_only_once() {
    let mut values = noise(2000);
    for value in &mut values[1500..1510] {
        *value += 100.0;
    }
    let found: Vec<usize> = detections(&values).into_iter().filter(|minute| (1400..1700).contains(minute)).collect();
    assert_eq!(found, [1500]);
}

#[test]
fn a_shift_of_the_level_is_found_within_minutes() {
    let mut values = noise(3000);
    for value in &mut values[2000..] {
        *value += 40.0;
    }
    let first = detections(&values).into_iter().find(|minute| *minute >= 2000);
    assert!(first.is_some_and(|minute| minute < 2010), "{first:?}");
}

#[test]
fn a_line_that_goes_flat_is_found_although_no_value_is_unusual() {
    let mut values = noise(3000);
    for value in &mut values[2000..2200] {
        *value = 100.0;
    }
    let first = detections(&values).into_iter().find(|minute| *minute >= 2000);
    assert!(first.is_some_and(|minute| minute < 2030), "{first:?}");
}

#[test]
fn any_change_of_a_constant_is_found() {
    let mut values = vec![0.0; 1000];
    values[800] = 1e-3;
    assert_eq!(detections(&values), [800]);
}

#[test]
fn noise_alone_seldom_alarms() {
    for (name, shape) in
        [("normal", (|x| x) as fn(f64) -> f64), ("lognormal", f64::exp), ("counts", |x| (3.0 + x).max(0.0).floor())]
    {
        let mut noise = Noise(11);
        let values: Vec<f64> = (0..20_000).map(|_| shape(noise.normal())).collect();
        let found = detections(&values).len();
        assert!(found <= 20, "{found} false alarms on {name} noise");
    }
}

#[test]
fn what_cannot_be_used_is_refused_and_leaves_no_trace() {
    let mut detector = ResidualDetector::new();
    for (minute, value) in noise(200).into_iter().enumerate() {
        let _ = detector.update(at(minute), value);
    }
    let before = detector.clone();
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e101] {
        assert!(matches!(detector.update(at(200), value), Err(Abstention::Unusable { .. })));
    }
    assert!(matches!(detector.update(at(199), 100.0), Err(Abstention::OutOfOrder { .. })));
    assert_eq!(detector, before);
}

#[test]
fn extreme_values_keep_scores_and_state_finite() {
    let mut detector = ResidualDetector::new();
    for minute in 0..3000 {
        let value = match minute % 5 {
            0 => ResidualDetector::VALUE_MAX,
            1 => -ResidualDetector::VALUE_MAX,
            2 => f64::MIN_POSITIVE,
            _ => 0.0,
        };
        if let Ok(score) = detector.update(at(minute), value) {
            assert!((0.0..1.0).contains(&score.score), "{score:?}");
            assert!(score.expected.is_finite(), "{score:?}");
        }
    }
}

#[test]
fn the_future_does_not_change_the_past() {
    let values = noise(1000);
    let mut other = values.clone();
    other[600] += 1000.0;
    let scores = |values: &[f64]| {
        let mut detector = ResidualDetector::new();
        (0..600).map(|minute| detector.update(at(minute), values[minute]).ok()).collect::<Vec<_>>()
    };
    assert_eq!(scores(&values), scores(&other));
}

#[test]
fn a_restored_detector_continues_bit_for_bit() {
    let values = noise(3000);
    let mut whole = ResidualDetector::new();
    let mut cut = ResidualDetector::new();
    for (minute, value) in values.into_iter().enumerate() {
        if minute % 700 == 350 {
            let saved = serde_json::to_string(&cut).unwrap();
            cut = serde_json::from_str(&saved).unwrap();
        }
        assert_eq!(whole.update(at(minute), value), cut.update(at(minute), value));
    }
    assert_eq!(whole, cut);
}

#[test]
fn a_series_costs_no_more_than_stated() {
    assert!(size_of::<ResidualDetector>() <= 4096);
}

/// Writes the scores of every series of the Numenta Anomaly Benchmark, as its scorer reads them, where the environment
/// names the corpus (BELLWETHER_NAB) and a folder for the scores (BELLWETHER_NAB_SCORES).
#[test]
fn nab_scores_are_written_on_request() {
    let (Some(corpus), Some(scores)) = (std::env::var_os("BELLWETHER_NAB"), std::env::var_os("BELLWETHER_NAB_SCORES"))
    else {
        return;
    };
    let (corpus, scores) = (std::path::PathBuf::from(corpus).join("data"), std::path::PathBuf::from(scores));
    for folder in std::fs::read_dir(corpus).unwrap().map(Result::unwrap) {
        let out = scores.join(folder.file_name());
        std::fs::create_dir_all(&out).unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            let text = std::fs::read_to_string(file.path()).unwrap();
            std::fs::write(out.join(file.file_name()), nab_scores(&text)).unwrap();
        }
    }
}

fn nab_scores(csv: &str) -> String {
    let mut detector = ResidualDetector::new();
    let mut out = String::from("anomaly_score\n");
    for line in csv.lines().skip(1) {
        let (time, value) = line.split_once(',').unwrap();
        let time = EventTime::parse_rfc3339(&format!("{}Z", time.trim().replace(' ', "T"))).unwrap();
        let score = detector.update(time, value.trim().parse().unwrap()).map_or(0.0, |score| score.score);
        out.push_str(&format!("{score}\n"));
    }
    out
}
