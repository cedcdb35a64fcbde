//! A decision in the words a colleague would use. Holds wording alone; what it says was computed before.

use chrono::DateTime;

use super::{Load, Need, ScalingTarget, TargetState, Unknown};
use crate::model::decision::Abstention;
use crate::model::time::EventTime;

/// Says why a number of replicas is asked for.
pub fn of_number(target: &ScalingTarget, load: &Load, need: &Need, desired: u32, before: &TargetState) -> String {
    let unit = &target.unit;
    let ahead = load.peak.map_or_else(
        || "no forecast to go by".to_owned(),
        |peak| format!("up to {:.1}{unit} expected by {}", peak.upper, clock(peak.at)),
    );
    let use_of = match need.by_forecast {
        true => String::new(),
        false => format!(" at {:.0} % use", target.utilization * 100.0),
    };
    let each = format!("{:.1}{unit}{use_of}", target.capacity_per_replica);
    let goes_down = before.desired_replicas.is_some_and(|asked| asked > desired);
    let number = if need.unbounded > target.replicas_max {
        format!("{} of {each} would be needed, {} is the maximum", need.unbounded, replicas(target.replicas_max))
    } else if need.unbounded < target.replicas_min && desired == target.replicas_min {
        format!("{} is the minimum, {} of {each} would do", replicas(desired), need.unbounded)
    } else if goes_down && desired > target.replicas_max.min(need.replicas) {
        let held = humantime::format_duration(target.cooldown);
        format!("{} of {each} held the highest need of the last {held}", replicas(desired))
    } else if desired > need.replicas {
        format!("{} of {each} hold it with room to spare", replicas(desired))
    } else {
        format!("{} of {each} {} it", replicas(desired), if desired == 1 { "holds" } else { "hold" })
    };
    let was =
        before.desired_replicas.map_or_else(|| "nothing was asked for yet".to_owned(), |was| format!("was {was}"));
    let back = if before.abstention.is_some() { "there is a load to judge by again: " } else { "" };
    format!("{back}load {:.1}{unit} now, {ahead}; {number}; {was}", load.current)
}

/// Says why no number is asked for, and that nothing should change.
pub fn of_abstention(target: &ScalingTarget, now: EventTime, why: &Unknown, asked: Option<u32>) -> String {
    let (view, column) = (&target.view, &target.column);
    let newest = why.newest.map_or(now, |(at, _)| at);
    let what = match why.abstention {
        Abstention::NoData => format!("no row of {view} has been seen for {}", target.target),
        Abstention::StaleData => format!(
            "the newest row of {view} is of {}, {} ago, where at most {} is allowed",
            clock(newest),
            humantime::format_duration(std::time::Duration::from_secs(now.since(newest).as_secs())),
            humantime::format_duration(target.stale_after)
        ),
        Abstention::ShortHistory => {
            format!("{} usable rows of {view} where {} are needed", why.rows, target.history_min)
        }
        Abstention::UnusableLoad => format!(
            "{view}.{column} is {} at {}, where a load of at least zero was expected",
            why.newest.map_or(f64::NAN, |(_, load)| load),
            clock(newest)
        ),
    };
    let keep = asked.map_or_else(|| "change nothing".to_owned(), |asked| format!("keep {}", replicas(asked)));
    format!("{what}; {keep}")
}

fn replicas(n: u32) -> String {
    if n == 1 { "1 replica".to_owned() } else { format!("{n} replicas") }
}

/// Returns the time of day, UTC: a reason is about minutes, and the decision carries the date.
fn clock(at: EventTime) -> String {
    DateTime::from_timestamp_micros(at.as_micros())
        .map_or_else(|| at.to_string(), |time| time.format("%H:%M:%S").to_string())
}
