//! The state machine against a naive model, and its edges one by one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn rule(header: &str) -> Rule {
    Rule::parse("r.sql", &format!("-- severity: warning\n{header}\nSELECT 1")).unwrap()
}

fn at(seconds: i64) -> EventTime {
    EventTime::from_micros(seconds * 1_000_000)
}

fn row(service: &str, value: f64) -> Instance {
    let labels = BTreeMap::from([("service".to_owned(), service.to_owned())]);
    Instance { columns: labels.clone(), labels, value: Some(value) }
}

/// Runs one instance through ticks 10 s apart, present where the text has an `x`, and returns `second state` lines.
fn run(rule: &Rule, presence: &str) -> Vec<String> {
    let mut alerts = Alerts::default();
    let ticks = presence.chars().zip((0..).step_by(10));
    ticks
        .flat_map(|(c, second)| {
            let rows = if c == 'x' { vec![row("a", 1.0)] } else { Vec::new() };
            alerts.step(rule, at(second), &rows).unwrap()
        })
        .map(|alert| format!("{} {}", alert.at.as_micros() / 1_000_000, alert.state.as_str()))
        .collect()
}

#[test]
fn for_is_inclusive_and_a_gap_starts_anew() {
    assert_eq!(run(&rule("-- for: 20s"), "xxxx"), ["0 pending", "20 firing"]);
    assert_eq!(run(&rule("-- for: 21s"), "xxxx"), ["0 pending", "30 firing"]);
    assert_eq!(
        run(&rule("-- for: 20s"), "xx.xxx."),
        ["0 pending", "20 resolved", "30 pending", "50 firing", "60 resolved"]
    );
    assert_eq!(run(&rule(""), "xx.x"), ["0 firing", "20 resolved", "30 firing"]);
}

#[test]
fn it_keeps_firing_through_short_absences_only() {
    let rule = rule("-- keep_firing_for: 20s");
    assert_eq!(run(&rule, "x..x...."), ["0 firing", "60 resolved"]);
    assert_eq!(run(&rule, "x...x"), ["0 firing", "30 resolved", "40 firing"]);
}

#[test]
fn keeping_on_is_for_what_fires_not_for_what_is_pending() {
    assert_eq!(run(&rule("-- for: 30s\n-- keep_firing_for: 1h"), "x.x"), ["0 pending", "10 resolved", "20 pending"]);
}

#[test]
fn an_alert_carries_the_labels_of_row_and_rule_and_its_annotations() {
    let rule = rule("-- labels: team=pay, service=over\n-- summary: {service} is at {value}");
    let alert = &Alerts::default().step(&rule, at(0), &[row("cart", 2.5)]).unwrap()[0];
    let labels = BTreeMap::from([("team".into(), "pay".into()), ("service".into(), "over".into())]);
    assert_eq!(alert.labels, labels);
    assert_eq!(alert.annotations["summary"], "cart is at 2.5");
    assert_eq!(alert.fingerprint, Alert::fingerprint_of("r", &labels));
    assert_eq!(alert.id, Alert::id_of(&rule.version, &alert.fingerprint, at(0), State::Firing));
}

#[test]
fn ids_are_the_same_in_a_second_run_and_never_shared_within_one() {
    let rule = rule("-- for: 10s");
    let run = || {
        let mut alerts = Alerts::default();
        (0..40)
            .flat_map(|i| {
                let rows = if i % 7 < 4 { vec![row("a", f64::from(i)), row("b", 1.0)] } else { Vec::new() };
                alerts.step(&rule, at(i64::from(i) * 10), &rows).unwrap()
            })
            .map(|alert| alert.id)
            .collect::<Vec<_>>()
    };
    let ids = run();
    assert_eq!(ids, run());
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}

#[test]
fn two_rows_with_the_same_labels_are_refused_and_change_nothing() {
    let rule = rule("");
    let mut alerts = Alerts::default();
    alerts.step(&rule, at(0), &[row("a", 1.0)]).unwrap();
    let before = alerts.clone();
    let error = alerts.step(&rule, at(10), &[row("b", 1.0), row("b", 2.0)]).unwrap_err();
    assert!(matches!(error, Error::RepeatedInstance { .. }));
    assert_eq!(alerts, before);
}

#[test]
fn a_tick_not_after_the_last_is_refused() {
    let rule = rule("");
    let mut alerts = Alerts::default();
    alerts.step(&rule, at(10), &[]).unwrap();
    for second in [9, 10] {
        assert!(matches!(alerts.step(&rule, at(second), &[]), Err(Error::OutOfOrder { .. })));
    }
}

#[test]
fn instances_are_bounded_and_what_is_refused_is_counted() {
    let rule = rule("");
    let mut alerts = Alerts::new(2);
    let rows: Vec<_> = ["a", "b", "c"].map(|service| row(service, 1.0)).to_vec();
    assert_eq!(alerts.step(&rule, at(0), &rows).unwrap().len(), 2);
    assert_eq!((alerts.active().count(), alerts.refused()), (2, 1));
    let followed: Vec<String> = alerts.active().map(|a| a.labels["service"].clone()).collect();
    // Room that an ended episode leaves is given away at the same tick.
    let rest: Vec<_> = rows.into_iter().filter(|row| row.labels["service"] != followed[0]).collect();
    let states: Vec<_> = alerts.step(&rule, at(10), &rest).unwrap().into_iter().map(|a| a.state).collect();
    assert_eq!((states, alerts.refused()), (vec![State::Resolved, State::Firing], 1));
}

#[test]
fn a_new_version_goes_on_with_the_episodes() {
    let (old, new) = (rule("-- for: 20s"), rule("-- for: 10s"));
    let mut alerts = Alerts::default();
    alerts.step(&old, at(0), &[row("a", 1.0)]).unwrap();
    let fired = alerts.step(&new, at(10), &[row("a", 1.0)]).unwrap();
    assert_eq!((fired[0].state, fired[0].active_since), (State::Firing, at(0)));
    assert_eq!(fired[0].rule_version, new.version);
}

#[test]
fn a_removed_rule_resolves_what_it_said() {
    let rule = rule("");
    let mut alerts = Alerts::default();
    alerts.step(&rule, at(0), &[row("a", 1.0)]).unwrap();
    assert!(alerts.retain_rules(std::slice::from_ref(&rule), at(10)).is_empty());
    let ended = alerts.retain_rules(&[], at(20));
    assert_eq!((ended.len(), ended[0].state, ended[0].at), (1, State::Resolved, at(20)));
    assert_eq!(alerts.active().count(), 0);
}

#[test]
fn a_value_that_is_no_number_is_left_out() {
    let alert = &Alerts::default().step(&rule(""), at(0), &[row("a", f64::NAN)]).unwrap()[0];
    assert_eq!(alert.value, None);
}

/// The transitions of one instance, said by looking back and forth over all its ticks instead of keeping a state.
fn naive(ticks: &[i64], present: &[bool], for_: i64, keep: i64) -> Vec<(i64, State)> {
    let mut said = Vec::new();
    let mut from = 0;
    while let Some(start) = (from..ticks.len()).find(|i| present[*i]) {
        let gap = (start..ticks.len()).find(|i| !present[*i]).unwrap_or(ticks.len());
        let fires = (start..gap).find(|i| ticks[*i] - ticks[start] >= for_);
        if for_ > 0 {
            said.push((ticks[start], State::Pending));
        }
        let end = match fires {
            None => Some(gap).filter(|gap| *gap < ticks.len()),
            Some(fires) => {
                said.push((ticks[fires], State::Firing));
                (gap..ticks.len()).find(|end| {
                    let absent_from = (0..=*end).rev().take_while(|i| !present[*i]).last();
                    absent_from.is_some_and(|absent| ticks[*end] - ticks[absent] >= keep)
                })
            }
        };
        let Some(end) = end else { break };
        said.push((ticks[end], State::Resolved));
        from = end + 1;
    }
    said
}

proptest! {
    #[test]
    fn it_says_what_the_naive_model_says(
        steps in prop::collection::vec((1i64..40, prop::collection::vec(any::<bool>(), 3), any::<f64>()), 1..60),
        for_ in 0i64..60,
        keep in 0i64..60,
    ) {
        let rule = rule(&format!("-- for: {for_}s\n-- keep_firing_for: {keep}s"));
        let mut alerts = Alerts::default();
        let (mut ticks, mut said) = (Vec::new(), vec![Vec::new(); 3]);
        for (gap, present, value) in &steps {
            ticks.push(ticks.last().copied().unwrap_or(0) + gap);
            let rows: Vec<_> = (0..3).filter(|i| present[*i]).map(|i| row(&i.to_string(), *value)).collect();
            // Written down and read back at every tick: a restart must not change a word.
            let text = serde_json::to_string(&alerts).unwrap();
            let mut restored: Alerts = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&restored, &alerts);
            let transitions = alerts.step(&rule, at(*ticks.last().unwrap()), &rows).unwrap();
            prop_assert_eq!(&restored.step(&rule, at(*ticks.last().unwrap()), &rows).unwrap(), &transitions);
            for alert in transitions {
                let which: usize = alert.labels["service"].parse().unwrap();
                said[which].push((alert.at.as_micros() / 1_000_000, alert.state));
            }
        }
        for (which, said) in said.iter().enumerate() {
            let present: Vec<bool> = steps.iter().map(|(_, present, _)| present[which]).collect();
            prop_assert_eq!(said, &naive(&ticks, &present, for_, keep));
        }
    }
}
