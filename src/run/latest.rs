//! The newest values on the scrape page: what a tick changed, told to telemetry.

use super::closed_loop::{ClosedLoop, Tick};
use super::rows;
use crate::model::alert::State;
use crate::telemetry::Telemetry;
use crate::telemetry::latest::{AlertValue, ForecastValue, TrackValue};

/// Shows what a tick gave.
pub fn show(telemetry: &Telemetry, closed_loop: &ClosedLoop, tick: &Tick) {
    for emission in &tick.emissions {
        let values = rows::of_batch(&emission.rows).flat_map(|row| {
            let key = row.key;
            row.values.into_iter().map(move |(column, value)| TrackValue { column, key: key.clone(), value })
        });
        telemetry.latest.replace_view(&emission.view, values);
    }
    show_scores(telemetry, tick);
    show_forecasts(telemetry, tick);
    let alerts: Vec<AlertValue> = closed_loop
        .active_alerts()
        .map(|alert| AlertValue {
            rule: alert.rule.to_owned(),
            severity: alert.severity.as_str(),
            firing: alert.state == State::Firing,
            labels: alert.labels.clone(),
        })
        .collect();
    telemetry.latest.replace_alerts(&alerts);
    for decision in &tick.decisions {
        let outcome = decision.abstention.map_or("scale", |abstention| abstention.as_str());
        telemetry.decisions.made(&decision.target, outcome);
        telemetry.latest.set_decision(&decision.target, decision.desired_replicas, decision.confidence);
    }
}

fn show_scores(telemetry: &Telemetry, tick: &Tick) {
    let mut views: Vec<&str> = tick.scores.iter().map(|(track, _)| track.view.as_str()).collect();
    views.sort_unstable();
    views.dedup();
    for view in views {
        let of_view = tick.scores.iter().filter(|(track, _)| track.view == view);
        let values: Vec<TrackValue> = of_view
            .map(|(track, score)| TrackValue { column: track.column.clone(), key: track.key.clone(), value: *score })
            .collect();
        telemetry.latest.replace_anomaly_scores(view, &values);
    }
}

fn show_forecasts(telemetry: &Telemetry, tick: &Tick) {
    let mut views: Vec<&str> = tick.forecasts.iter().map(|forecast| forecast.track.view.as_str()).collect();
    views.sort_unstable();
    views.dedup();
    for view in views {
        let of_view = tick.forecasts.iter().filter(|forecast| forecast.track.view == view);
        let values: Vec<ForecastValue> = of_view
            .map(|forecast| ForecastValue {
                column: forecast.track.column.clone(),
                key: forecast.track.key.clone(),
                horizon: forecast.target_time.since(forecast.issued_at),
                yhat: forecast.yhat,
                yhat_lower: forecast.yhat_lower,
                yhat_upper: forecast.yhat_upper,
            })
            .collect();
        telemetry.latest.replace_forecasts(view, &values);
    }
}
