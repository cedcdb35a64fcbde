-- How long workflows took, per workflow, in seconds.
CREATE MATERIALIZED VIEW workflow_duration_5m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n,
       hdr_quantile(duration_ms / 1000.0, 0.5) AS p50_seconds,
       hdr_quantile(duration_ms / 1000.0, 0.95) AS p95_seconds,
       trend(duration_ms / 1000.0, ts) AS slope
FROM events
WHERE type = 'workflow.completed' AND duration_ms IS NOT NULL
GROUP BY tumble(ts, INTERVAL '5 minutes'), subject;
