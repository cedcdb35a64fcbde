-- key: window_start, window_end, service
-- tolerance: slope 1e-6
WITH requests AS (
    SELECT time_bucket(INTERVAL '1 minute', ts) AS window_start, labels['service'] AS service, value,
           seconds_since(ts, time_bucket(INTERVAL '1 minute', ts)) AS elapsed
    FROM truth.metrics WHERE name = 'request_duration_seconds'),
grouped AS (
    SELECT window_start, service, count(*) AS n, list(value) AS xs, CASE WHEN count(DISTINCT elapsed) >= 2 THEN regr_slope(value, elapsed) END AS slope, avg(value) AS mean,
           max(elapsed) - min(elapsed) AS span
    FROM requests GROUP BY window_start, service)
SELECT window_start, window_start + INTERVAL '1 minute' AS window_end, service, n,
       quantile_lo(xs, 0.50) AS p50__lo, quantile_hi(xs, 0.50) AS p50__hi,
       quantile_lo(xs, 0.90) AS p90__lo, quantile_hi(xs, 0.90) AS p90__hi,
       quantile_lo(xs, 0.95) AS p95__lo, quantile_hi(xs, 0.95) AS p95__hi,
       quantile_lo(xs, 0.99) AS p99__lo, quantile_hi(xs, 0.99) AS p99__hi,
       slope,
       CASE WHEN slope IS NULL THEN NULL
            WHEN slope * span / abs(mean) > 0.05 THEN 'degrading'
            WHEN slope * span / abs(mean) < -0.05 THEN 'improving'
            ELSE 'stable' END AS direction
FROM grouped;
