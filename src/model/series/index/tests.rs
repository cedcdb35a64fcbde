//! The index against a plain list of the same series.

use proptest::prelude::*;

use super::*;

fn index(series: &[(&str, &[(&str, &str)])]) -> Index {
    let mut index = Index::default();
    for (at, (name, labels)) in series.iter().enumerate() {
        let mut described = Descriptor { name, labels: labels.to_vec(), ..Descriptor::default() };
        index.insert(SeriesId(at as i64 * 7), &mut described, EventTime::from_micros(at as i64));
    }
    index
}

fn rows(index: &Index, label: &str, value: &str) -> Vec<u32> {
    index.values(label).map(|values| values.get(value).to_vec()).unwrap_or_default()
}

#[test]
fn series_are_found_by_name_and_labels() {
    let index = index(&[
        ("up", &[("zone", "a"), ("host", "x")]),
        ("up", &[("host", "y")]),
        ("load", &[("host", "x"), ("cpu", "0")]),
    ]);
    assert_eq!(rows(&index, NAME, "up"), [0, 1]);
    assert_eq!(rows(&index, "host", "x"), [0, 2]);
    assert_eq!(rows(&index, "host", "z"), [0; 0]);
    assert!(index.values("rack").is_none());
    assert_eq!(index.labels().map(|(label, _)| label).collect::<Vec<_>>(), [NAME, "cpu", "host", "zone"]);
    let up = Alike { kind: Kind::default(), unit: "", label_names: BTreeSet::from(["host", "zone"]), series: 2 };
    assert_eq!(index.alike(&rows(&index, NAME, "up")), [up]);
    assert_eq!(index.find(SeriesId(7)), Some(1));
    assert_eq!(index.first_seen(2), Some(EventTime::from_micros(2)));
}

#[test]
fn a_series_told_twice_is_there_once() {
    let mut index = index(&[("up", &[("host", "x")])]);
    let mut again = Descriptor { name: "up", labels: vec![("host", "x")], ..Descriptor::default() };
    index.insert(SeriesId(0), &mut again, EventTime::from_micros(9));
    assert_eq!(index.len(), 1);
    assert_eq!(rows(&index, "host", "x"), [0]);
    assert_eq!(index.first_seen(0), Some(EventTime::from_micros(0)));
}

proptest! {
    #[test]
    fn rows_are_sets(len in 0_usize..300, a in prop::collection::btree_set(0_u32..300, 0..80), b in prop::collection::btree_set(0_u32..300, 0..80)) {
        let within = |rows: &BTreeSet<u32>| rows.iter().copied().filter(|&row| (row as usize) < len).collect::<Vec<_>>();
        let set = |rows: &BTreeSet<u32>| {
            let mut set = Rows::none(len);
            set.extend(&rows.iter().copied().collect::<Vec<_>>());
            set
        };
        prop_assert_eq!(set(&a).iter().collect::<Vec<_>>(), within(&a));
        prop_assert_eq!(set(&a).count(), within(&a).len());
        let mut both = set(&a);
        both.retain(&set(&b));
        prop_assert_eq!(both.iter().collect::<Vec<_>>(), within(&a.intersection(&b).copied().collect()));
        let others: BTreeSet<u32> = (0..len as u32).filter(|row| !a.contains(row)).collect();
        prop_assert_eq!(set(&a).complement().iter().collect::<Vec<_>>(), within(&others));
        prop_assert!((0..400).all(|row| set(&a).contains(row) == within(&a).contains(&row)));
        prop_assert_eq!(Rows::all(len).count(), len);
    }
}
