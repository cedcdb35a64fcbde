-- key: window_start, window_end, workflow, phase
WITH runs AS (
    SELECT time_bucket(INTERVAL '5 minutes', ts) AS window_start, attributes['workflow'] AS workflow,
           attributes['phase'] AS phase, outcome, duration_ms / 1000 AS took
    FROM truth.events WHERE type = 'task.completed' AND duration_ms IS NOT NULL),
grouped AS (
    SELECT window_start, workflow, phase, count(*) AS n, count(*) FILTER (outcome = 'failure') AS failures,
           list(took) AS xs
    FROM runs GROUP BY window_start, workflow, phase)
SELECT window_start, window_start + INTERVAL '5 minutes' AS window_end, workflow, phase, n, failures,
       quantile_lo(xs, 0.50) AS p50_seconds__lo, quantile_hi(xs, 0.50) AS p50_seconds__hi,
       quantile_lo(xs, 0.95) AS p95_seconds__lo, quantile_hi(xs, 0.95) AS p95_seconds__hi
FROM grouped;
