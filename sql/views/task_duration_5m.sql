-- How long the phases of workflows took, in seconds, and how many failed.
CREATE MATERIALIZED VIEW task_duration_5m AS
SELECT window_start, window_end, attributes['workflow'] AS workflow, attributes['phase'] AS phase, count(*) AS n,
       count(*) FILTER (WHERE outcome = 'failure') AS failures,
       hdr_quantile(duration_ms / 1000.0, 0.5) AS p50_seconds,
       hdr_quantile(duration_ms / 1000.0, 0.95) AS p95_seconds
FROM events
WHERE type = 'task.completed' AND duration_ms IS NOT NULL
GROUP BY tumble(ts, INTERVAL '5 minutes'), attributes['workflow'], attributes['phase'];
