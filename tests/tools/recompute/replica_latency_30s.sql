-- key: window_start, window_end, service, replica
WITH requests AS (
    SELECT time_bucket(INTERVAL '30 seconds', ts) AS window_start, labels['service'] AS service,
           labels['replica'] AS replica, value
    FROM truth.metrics WHERE name = 'request_duration_seconds'),
grouped AS (
    SELECT window_start, service, replica, count(*) AS n, list(value) AS xs
    FROM requests GROUP BY window_start, service, replica)
SELECT window_start, window_start + INTERVAL '30 seconds' AS window_end, service, replica, n,
       quantile_lo(xs, 0.50) AS p50__lo, quantile_hi(xs, 0.50) AS p50__hi,
       quantile_lo(xs, 0.95) AS p95__lo, quantile_hi(xs, 0.95) AS p95__hi
FROM grouped;
