-- key: window_start, window_end, workflow
-- tolerance: slope 1e-6
WITH runs AS (
    SELECT time_bucket(INTERVAL '5 minutes', ts) AS window_start, subject AS workflow, ts, duration_ms / 1000 AS took,
           seconds_since(ts, time_bucket(INTERVAL '5 minutes', ts)) AS elapsed
    FROM truth.events WHERE type = 'workflow.completed' AND duration_ms IS NOT NULL),
grouped AS (
    SELECT window_start, workflow, count(*) AS n, list(took) AS xs,
           CASE WHEN count(DISTINCT ts) >= 2 THEN regr_slope(took, elapsed) END AS slope
    FROM runs GROUP BY window_start, workflow)
SELECT window_start, window_start + INTERVAL '5 minutes' AS window_end, workflow, n,
       quantile_lo(xs, 0.50) AS p50_seconds__lo, quantile_hi(xs, 0.50) AS p50_seconds__hi,
       quantile_lo(xs, 0.95) AS p95_seconds__lo, quantile_hi(xs, 0.95) AS p95_seconds__hi,
       slope
FROM grouped;
