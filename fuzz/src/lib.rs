//! What every fuzz target checks of a decoder. Holds no target itself.

use bellwether::ingest::{Bounds, Feeds, Format, Limits, Record, decoder};
use bellwether::model::batch::Decoded;
use bellwether::model::series::Interner;
use bellwether::model::time::EventTime;

/// Decodes the bytes twice, the second time with every spelling remembered, and checks what must hold of any input.
///
/// # Panics
/// Where a decoder breaks its contract.
pub fn check(format: Format, value: &[u8], headers: &[(&str, &[u8])]) {
    let limits = Limits { points_per_record_max: 1_000, ..Limits::default() };
    let bounds = Bounds { oldest: EventTime::from_micros(0), newest: EventTime::from_micros(4_102_444_800_000_000) };
    let record = Record { value, timestamp: EventTime::from_micros(1_772_366_400_000_000), headers };
    let (mut decoder, mut interner) = (decoder(format, limits.clone()), Interner::new(1_000_000));
    let (mut first, mut second) = (Decoded::default(), Decoded::default());
    let outcome = decoder.decode(&record, bounds, &mut interner, &mut first);
    let again = decoder.decode(&record, bounds, &mut interner, &mut second);
    assert_eq!(outcome, again, "the outcome must not depend on what was seen before");
    assert_eq!(first.samples, second.samples, "a remembered spelling must mean the same series");
    assert_eq!(first.events, second.events);
    let (samples, events) = (first.samples.len(), first.events.len());
    assert!(samples.max(events) <= limits.points_per_record_max);
    match format.feeds() {
        Feeds::Samples => assert_eq!(events, 0),
        Feeds::Events => assert_eq!(samples, 0),
    }
    match outcome {
        Ok(()) => {
            assert!(first.samples.value.iter().all(|value| value.is_finite()));
            assert!(first.samples.series.iter().all(|series| (*series as usize) < interner.len()));
        }
        Err(reject) => {
            assert!(samples == 0 && events == 0, "a refused record must leave nothing");
            assert!(!reject.message.is_empty());
        }
    }
}
