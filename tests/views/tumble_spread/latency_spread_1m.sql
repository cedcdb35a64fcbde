-- How far request latencies lie apart, per service, and whether all of them, or any, were fast.
CREATE MATERIALIZED VIEW latency_spread_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, stddev(value) AS sd,
       var_pop(value) AS variance, bool_and(value < 0.2) AS all_fast, bool_or(value < 0.05) AS any_very_fast,
       bool_or(labels['absent'] = 'x') AS any_unknown
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
