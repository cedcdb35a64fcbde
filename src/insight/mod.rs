//! Anomalies, outliers and forecasts over the rows of views.
