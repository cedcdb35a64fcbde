//! Interning: what is told apart, what is forgotten, and a naive model to compare with.

use proptest::prelude::*;

use super::*;

fn describe<'a>(name: &'a str, labels: &[(&'a str, &'a str)]) -> Descriptor<'a> {
    Descriptor { name, labels: labels.to_vec(), ..Descriptor::default() }
}

#[test]
fn the_order_of_labels_does_not_matter() {
    let mut interner = Interner::new(10);
    let one = interner.intern(&mut describe("m", &[("a", "1"), ("b", "2")])).unwrap();
    let two = interner.intern(&mut describe("m", &[("b", "2"), ("a", "1")])).unwrap();
    assert_eq!(one, two);
    assert_eq!(interner.get(one).unwrap().label("b"), Some("2"));
    assert_eq!(interner.get(one).unwrap().label("c"), None);
}

#[test]
fn another_unit_is_another_series() {
    let mut interner = Interner::new(10);
    let of = |unit| Descriptor { unit, ..describe("temperature", &[]) };
    let kelvin = interner.intern(&mut of("kelvin")).unwrap();
    assert_ne!(interner.intern(&mut of("celsius")).unwrap(), kelvin);
    assert_eq!(interner.intern(&mut of("kelvin")).unwrap(), kelvin);
}

#[test]
fn a_full_interner_refuses_new_series_and_keeps_the_old() {
    let mut interner = Interner::new(1);
    let first = interner.intern(&mut describe("m", &[])).unwrap();
    assert_eq!(interner.intern(&mut describe("n", &[])), Err(InternError::Full { max: 1 }));
    assert_eq!(interner.intern(&mut describe("m", &[])), Ok(first));
}

#[test]
fn a_refused_record_leaves_no_series() {
    let mut interner = Interner::new(2);
    let kept = interner.intern(&mut describe("a", &[])).unwrap();
    interner.remember(1, kept);
    let mark = interner.mark();
    let gone = interner.intern(&mut describe("b", &[])).unwrap();
    interner.remember(2, gone);
    interner.remember(3, kept);
    interner.rewind(mark);
    assert_eq!((interner.len(), interner.recall(1), interner.recall(2)), (1, Some(kept), None));
    assert_eq!(interner.recall(3), Some(kept), "another spelling of a series that stays");
    assert_eq!(interner.intern(&mut describe("c", &[])), Ok(gone), "its number is free again");
}

#[test]
fn a_label_twice_is_refused_unless_equal() {
    let mut interner = Interner::new(10);
    assert!(interner.intern(&mut describe("m", &[("a", "1"), ("a", "1")])).is_ok());
    assert!(matches!(
        interner.intern(&mut describe("m", &[("a", "1"), ("a", "2")])),
        Err(InternError::DuplicateLabel { .. })
    ));
}

#[test]
fn ids_are_the_same_in_every_release() {
    let id = |descriptor: &mut Descriptor<'_>| {
        let mut interner = Interner::new(1);
        let series = interner.intern(descriptor).unwrap();
        interner.get(series).unwrap().id.0
    };
    assert_eq!(id(&mut describe("m", &[])), -1_110_812_869_880_661_450);
    assert_eq!(id(&mut describe("m", &[("b", "2"), ("a", "1")])), -1_110_336_193_050_599_887);
    assert_eq!(
        id(&mut Descriptor { kind: Kind::Counter, unit: "s", ..describe("m", &[("a", "")]) }),
        -1_110_250_780_737_860_784
    );
}

#[test]
fn the_series_of_one_metric_are_neighbours() {
    let mut interner = Interner::new(100);
    let mut first_bits = |name: &str| -> std::collections::BTreeSet<i64> {
        let ids = (0..9).map(|n| {
            let value = n.to_string();
            let series = interner.intern(&mut describe(name, &[("host", &value)])).unwrap();
            interner.get(series).unwrap().id.0 >> 52
        });
        ids.collect()
    };
    let (one, other) = (first_bits("node_load1"), first_bits("node_load5"));
    assert_eq!((one.len(), other.len()), (1, 1));
    assert_ne!(one, other);
}

#[test]
fn a_series_read_back_keeps_its_id_and_the_order_of_labels() {
    let mut interner = Interner::new(0);
    let series = interner.restore(SeriesId(7), &mut describe("m", &[("b", "2"), ("a", "1")]));
    assert_eq!(interner.restore(SeriesId(7), &mut describe("m", &[])), series, "the id alone tells");
    assert_eq!(interner.find(SeriesId(7)), Some(series));
    assert_eq!(interner.get(series).unwrap().labels().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
}

/// What an interner does, said plainly.
#[derive(Clone, Debug, Default)]
struct Model(Vec<Described>);

/// Name, labels, kind, unit.
type Described = (String, Vec<(String, String)>, bool, String);

fn described() -> impl Strategy<Value = Described> {
    let labels = prop::collection::btree_map("[ab]{0,2}", "[xé]{0,2}", 0..4);
    ("[mn]", labels, any::<bool>(), "s?")
        .prop_map(|(name, labels, counter, unit)| (name, labels.into_iter().rev().collect(), counter, unit))
}

fn as_descriptor((name, labels, counter, unit): &Described) -> Descriptor<'_> {
    let kind = if *counter { Kind::Counter } else { Kind::Gauge };
    Descriptor { name, labels: labels.iter().map(|(name, value)| (&**name, &**value)).collect(), kind, unit }
}

proptest! {
    /// Records of several series each, some refused: numbers, texts and look-ups are those of a list that is searched.
    #[test]
    fn an_interner_is_a_list_without_repetition(
        records in prop::collection::vec((prop::collection::vec(described(), 0..5), any::<bool>()), 0..20),
    ) {
        const SERIES_MAX: usize = 12;
        let (mut interner, mut model) = (Interner::new(SERIES_MAX), Model::default());
        for (series, refused) in records {
            let (mark, before) = (interner.mark(), model.clone());
            for one in series {
                let known = model.0.iter().position(|known| *known == one);
                let number = known.or((model.0.len() < SERIES_MAX).then_some(model.0.len()));
                let interned = interner.intern(&mut as_descriptor(&one)).ok();
                prop_assert_eq!(interned, number.map(|number| SeriesRef(number as u32)));
                if known.is_none() && number.is_some() {
                    model.0.push(one);
                }
            }
            if refused {
                interner.rewind(mark);
                model = before;
            }
            prop_assert_eq!(interner.len(), model.0.len());
            for (series, one) in interner.range(0..interner.len()).zip(&model.0) {
                let mut descriptor = as_descriptor(one);
                descriptor.labels.sort_unstable();
                prop_assert!(series.is(&descriptor), "{series:?} is not {descriptor:?}");
                prop_assert_eq!(interner.find(series.id).and_then(|at| interner.get(at)).map(|found| found.id), Some(series.id));
                for (name, value) in descriptor.labels {
                    prop_assert_eq!(series.label(name), Some(value));
                }
            }
        }
    }
}

proptest! {
    /// Spellings of which many are looked for in the same slots.
    #[test]
    fn the_memo_is_a_map(steps in proptest::collection::vec((0u8..8, 0u32..90, 0u32..1000), 0..600)) {
        let (mut memo, mut model) = (memo::Memo::default(), std::collections::HashMap::new());
        for (what, one, series) in steps {
            let spelling = u128::from(one % 5) << 6 | 62 | u128::from(one / 5) << 64;
            match what {
                0..5 => {
                    memo.insert(spelling, SeriesRef(series));
                    model.insert(spelling, SeriesRef(series));
                }
                _ => {
                    memo.remove(spelling);
                    model.remove(&spelling);
                }
            }
            prop_assert_eq!(memo.len(), model.len());
            for (spelling, series) in &model {
                prop_assert_eq!(memo.get(*spelling), Some(*series));
            }
            prop_assert_eq!(memo.get(spelling), model.get(&spelling).copied());
        }
    }
}
