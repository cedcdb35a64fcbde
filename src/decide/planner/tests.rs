//! The planner moment by moment, and what must hold for any load.

use proptest::prelude::*;

use super::*;

fn target() -> ScalingTarget {
    serde_json::from_value(serde_json::json!({
        "target": "checkout", "view": "service_throughput_1m", "column": "rate", "key": {"service": "checkout"},
        "capacity_per_replica": 100.0, "utilization": 0.8, "replicas_max": 10, "startup": "1m", "cooldown": "5m",
        "cost_per_replica_hour": 0.5, "stale_after": "3m", "history_min": 3, "unit": "/s",
    }))
    .unwrap()
}

/// Noon of some day, and so many seconds later.
fn at(seconds: i64) -> EventTime {
    EventTime::from_micros((1_767_268_800 + seconds) * 1_000_000)
}

/// Plans a target through loads a minute apart, without forecasts.
fn walk(target: &ScalingTarget, loads: &[f64]) -> Vec<Decision> {
    let (mut history, mut state, mut said) =
        (vec![(at(-120), 1.0), (at(-60), 1.0)], TargetState::default(), Vec::new());
    for (load, now) in loads.iter().zip((0..).step_by(60).map(at)) {
        history.push((now, *load));
        let (decision, next) = plan(target, now, &Inputs { history: &history, ..Inputs::default() }, &state);
        said.extend(decision);
        state = next;
    }
    said
}

fn minutes_and_replicas(said: &[Decision]) -> Vec<(u64, Option<u32>)> {
    said.iter().map(|d| (d.at.since(at(0)).as_secs() / 60, d.desired_replicas)).collect()
}

#[test]
fn up_at_once_down_after_the_cooldown_to_the_highest_need_of_it() {
    let loads = [300.0, 700.0, 100.0, 300.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0];
    let said = walk(&target(), &loads);
    // The lower need begins in minute 2; at minute 7 it has held for five, of which minute 3 is the highest.
    let expected = [(0, Some(4)), (1, Some(9)), (7, Some(4)), (8, Some(2))];
    assert_eq!(minutes_and_replicas(&said), expected);
    assert_eq!(said.iter().map(|d| d.epoch).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn a_load_on_the_edge_between_two_numbers_moves_nothing() {
    let edge: Vec<f64> = (0..60).map(|i| if i % 2 == 0 { 240.5 } else { 239.5 }).collect();
    assert_eq!(minutes_and_replicas(&walk(&target(), &edge)), [(0, Some(4))]);
    let slow: Vec<f64> = (0..60).map(|i| if (i / 10) % 2 == 0 { 241.0 } else { 236.0 }).collect();
    assert_eq!(minutes_and_replicas(&walk(&target(), &slow)), [(0, Some(4))]);
}

#[test]
fn an_exact_fit_needs_no_more_than_itself() {
    assert_eq!(replicas_for(300.0, 100.0), 3);
    assert_eq!(replicas_for(0.3, 0.1), 3);
    assert_eq!(replicas_for(0.0, 100.0), 0);
    assert_eq!(replicas_for(1e300, 1e-9), u32::MAX);
}

fn with_forecast(load: f64, forecast: &[(EventTime, f64)], issued_at: Option<EventTime>) -> Decision {
    let history = [(at(-120), load), (at(-60), load), (at(0), load)];
    let state = TargetState { desired_replicas: Some(4), ..TargetState::default() };
    let inputs = Inputs { history: &history, forecast, issued_at };
    plan(&ScalingTarget { replicas_max: 20, ..target() }, at(0), &inputs, &state).0.unwrap()
}

#[test]
fn the_reason_is_what_a_person_would_say() {
    let said = with_forecast(412.0, &[(at(60), 450.0), (at(240), 530.0), (at(361), 990.0)], Some(at(0)));
    assert_eq!(
        said.reason,
        "load 412.0/s now, up to 530.0/s expected by 12:04:00; 6 replicas of 100.0/s hold it; was 4"
    );
    assert_eq!((said.desired_replicas, said.cost_per_hour), (Some(6), Some(3.0)));
    assert_eq!((said.evidence.load, said.evidence.forecast_upper), (Some(412.0), Some(530.0)));
    assert_eq!((said.evidence.load_at, said.evidence.forecast_issued_at), (Some(at(0)), Some(at(0))));
    assert_eq!(said.evidence.previous_replicas, Some(4));
    let said = with_forecast(412.0, &[], None);
    assert_eq!(said.reason, "load 412.0/s now, no forecast to go by; 6 replicas of 100.0/s at 80 % use hold it; was 4");
    let said = with_forecast(4120.0, &[], None);
    assert_eq!(
        said.reason,
        "load 4120.0/s now, no forecast to go by; 52 of 100.0/s at 80 % use would be needed, 20 replicas is the \
         maximum; was 4"
    );
}

#[test]
fn a_forecast_counts_only_where_it_was_known_is_fresh_and_is_about_the_time_ahead() {
    let high = 1500.0;
    let cases: [(&str, EventTime, f64, EventTime); 6] = [
        ("issued later", at(60), high, at(1)),
        ("issued too long ago", at(60), high, at(-181)),
        ("about the past", at(0), high, at(0)),
        ("about the time after", at(361), high, at(0)),
        ("not a number", at(60), f64::NAN, at(0)),
        ("endless", at(60), f64::INFINITY, at(0)),
    ];
    for (name, target_time, upper, issued_at) in cases {
        let said = with_forecast(412.0, &[(target_time, upper)], Some(issued_at));
        assert_eq!((said.desired_replicas, said.evidence.forecast_upper), (Some(6), None), "{name}");
    }
    assert_eq!(with_forecast(412.0, &[(at(360), high)], Some(at(-180))).desired_replicas, Some(15));
}

#[test]
fn a_forecast_below_the_load_does_not_talk_it_down() {
    assert_eq!(with_forecast(412.0, &[(at(60), 10.0)], Some(at(0))).desired_replicas, Some(6));
}

#[test]
fn missing_data_is_an_abstention_and_never_zero() {
    let three = |newest: f64| vec![(at(-120), 100.0), (at(-60), 100.0), (at(0), newest)];
    let cases = [
        (
            vec![],
            at(0),
            Abstention::NoData,
            "no row of service_throughput_1m has been seen for checkout; keep 4 replicas",
        ),
        (
            three(100.0),
            at(181),
            Abstention::StaleData,
            "the newest row of service_throughput_1m is of 12:00:00, 3m 1s ago, where at most 3m is allowed; \
             keep 4 replicas",
        ),
        (
            three(f64::NAN),
            at(0),
            Abstention::UnusableLoad,
            "service_throughput_1m.rate is NaN at 12:00:00, where a load of at least zero was expected; keep 4 replicas",
        ),
        (three(-1.0), at(0), Abstention::UnusableLoad, "-1 at 12:00:00"),
        (three(100.0)[1..].to_vec(), at(0), Abstention::ShortHistory, "2 usable rows of service_throughput_1m where 3"),
        // Rows from after the moment are not known at the moment.
        (three(100.0), at(-200), Abstention::NoData, "no row"),
    ];
    for (history, now, why, reason) in cases {
        let state = TargetState { desired_replicas: Some(4), epoch: 7, ..TargetState::default() };
        let inputs = Inputs { history: &history, ..Inputs::default() };
        let (said, next) = plan(&target(), now, &inputs, &state);
        let said = said.unwrap();
        assert_eq!((said.desired_replicas, said.abstention, said.epoch), (None, Some(why), 8), "{reason}");
        assert_eq!((said.confidence, said.cost_per_hour, said.evidence.previous_replicas), (0.0, None, Some(4)));
        assert!(said.reason.contains(reason), "{}", said.reason);
        let later = plan(&target(), now + Duration::from_micros(1), &inputs, &next);
        assert!(later.0.is_none(), "an abstention is said once: {reason}");
        assert_eq!(later.1.desired_replicas, Some(4));
    }
}

#[test]
fn after_an_abstention_the_number_is_said_again_and_the_cooldown_starts_anew() {
    let mut loads = vec![700.0, 100.0, 100.0, 100.0, f64::NAN];
    loads.extend([100.0; 8]);
    let said = walk(&target(), &loads);
    assert_eq!(minutes_and_replicas(&said), [(0, Some(9)), (4, None), (5, Some(9)), (10, Some(2))]);
    assert!(said[2].reason.starts_with("there is a load to judge by again: load 100.0/s now"), "{}", said[2].reason);
}

#[test]
fn changed_bounds_hold_at_once() {
    let history = [(at(-120), 500.0), (at(-60), 500.0), (at(0), 500.0)];
    let inputs = Inputs { history: &history, ..Inputs::default() };
    let state = TargetState { desired_replicas: Some(7), epoch: 1, ..TargetState::default() };
    let plan_with = |target: ScalingTarget| plan(&target, at(0), &inputs, &state).0.and_then(|d| d.desired_replicas);
    assert_eq!(plan_with(target()), None);
    assert_eq!(plan_with(ScalingTarget { replicas_max: 5, ..target() }), Some(5));
    assert_eq!(plan_with(ScalingTarget { replicas_min: 8, ..target() }), Some(8));
}

#[test]
fn a_moment_not_after_the_last_changes_nothing() {
    let history = [(at(-120), 500.0), (at(-60), 500.0), (at(0), 500.0)];
    let inputs = Inputs { history: &history, ..Inputs::default() };
    let (_, state) = plan(&target(), at(0), &inputs, &TargetState::default());
    assert_eq!(plan(&target(), at(0), &inputs, &state), (None, state));
}

#[test]
fn doubt_grows_with_age_width_short_history_and_a_maximum_that_does_not_hold() {
    let sure = |load: f64, upper: Option<f64>, age: i64, rows: i64| {
        let history: Vec<_> = (0..rows).map(|i| (at(-age - 60 * i), load)).collect();
        let forecast: Vec<_> = upper.map(|upper| (at(60), upper)).into_iter().collect();
        let inputs = Inputs { history: &history, forecast: &forecast, issued_at: Some(at(0)) };
        plan(&target(), at(0), &inputs, &TargetState::default()).0.unwrap().confidence
    };
    let best = sure(400.0, Some(400.0), 0, 57);
    assert!((0.949..=0.95).contains(&best), "57 rows of at least 3 and no other doubt: {best}");
    for (why, doubtful) in [
        ("age", sure(400.0, Some(400.0), 90, 57)),
        ("width", sure(400.0, Some(500.0), 0, 57)),
        ("no forecast", sure(400.0, None, 0, 57)),
        ("short history", sure(400.0, Some(400.0), 0, 3)),
        ("out of reach", sure(4000.0, Some(4000.0), 0, 57)),
    ] {
        assert!(doubtful < best && doubtful > 0.0, "{why}: {doubtful}");
    }
}

#[test]
fn settings_are_checked() {
    let refused = |change: fn(&mut ScalingTarget)| {
        let mut target = target();
        change(&mut target);
        target.check().unwrap_err().to_string()
    };
    assert!(target().check().is_ok());
    assert_eq!(
        refused(|t| t.capacity_per_replica = 0.0),
        "scaling target \"checkout\": expected a number above zero as \"capacity_per_replica\", got 0"
    );
    assert!(refused(|t| t.utilization = 1.1).contains("a share above 0 and at most 1"));
    assert!(refused(|t| t.replicas_min = 11).contains("got 10 with a minimum of 11"));
    assert!(refused(|t| t.cost_per_replica_hour = f64::NAN).contains("got NaN"));
    assert!(refused(|t| t.stale_after = Duration::ZERO).contains("stale_after"));
    assert!(refused(|t| t.target.clear()).contains("a name"));
    let error = serde_json::from_str::<ScalingTarget>("{\"targt\": \"a\"}").unwrap_err().to_string();
    assert!(error.contains("unknown field `targt`"), "{error}");
}

#[test]
fn settings_round_trip() {
    let text = serde_json::to_string(&target()).unwrap();
    assert!(text.contains("\"cooldown\":\"5m\""));
    assert_eq!(serde_json::from_str::<ScalingTarget>(&text).unwrap(), target());
}

proptest! {
    #[test]
    fn whatever_the_load(
        loads in prop::collection::vec(
            prop_oneof![8 => (0.0..1200.0f64).prop_map(Some), 1 => Just(Some(f64::NAN)), 1 => Just(None)], 1..80),
        uppers in prop::collection::vec(0.0..1500.0f64, 80),
        replicas_min in 0u32..4,
    ) {
        let target = ScalingTarget { replicas_min, ..target() };
        let (mut history, mut state) = (vec![(at(-180), 1.0), (at(-120), 1.0), (at(-60), 1.0)], TargetState::default());
        let mut since_up = at(-1);
        let seconds = (0..).step_by(60);
        for ((load, upper), second) in loads.into_iter().zip(uppers).zip(seconds) {
            let now = at(second);
            history.extend(load.map(|load| (now, load)));
            let forecast = [(at(second + 60), upper)];
            let inputs = Inputs { history: &history, forecast: &forecast, issued_at: Some(now) };
            let (decision, next) = plan(&target, now, &inputs, &state);
            let restored: TargetState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            prop_assert_eq!(&restored, &state);
            prop_assert_eq!(plan(&target, now, &inputs, &restored), (decision.clone(), next.clone()));
            prop_assert!(next.needs.len() <= 11);

            let newest = history.last().unwrap();
            let judged = newest.1.is_finite() && now.since(newest.0) <= target.stale_after;
            prop_assert_eq!(next.abstention.is_some(), !judged);
            if judged {
                let need = replicas_for((newest.1 / 0.8).max(upper), 100.0).clamp(replicas_min, 10);
                prop_assert!(next.desired_replicas.unwrap() >= need, "the need is always held");
            } else {
                prop_assert_eq!(next.desired_replicas, state.desired_replicas, "nothing moves on missing data");
            }
            match &decision {
                Some(said) => {
                    prop_assert_eq!(said.epoch, state.epoch + 1);
                    prop_assert_eq!(said.abstention.is_none(), said.desired_replicas.is_some());
                    prop_assert!((0.0..=1.0).contains(&said.confidence));
                    prop_assert!(said.desired_replicas.is_none_or(|n| (replicas_min..=10).contains(&n)));
                }
                None => prop_assert_eq!(next.epoch, state.epoch),
            }
            if next.desired_replicas > state.desired_replicas {
                since_up = now;
            }
            if next.desired_replicas < state.desired_replicas {
                prop_assert!(now.since(since_up) >= target.cooldown, "down no sooner than the cooldown after up");
            }
            state = next;
        }
    }
}
