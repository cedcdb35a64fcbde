-- key: window_start, window_end, service
-- tolerance: slope 1e-6
WITH depths AS (
    SELECT time_bucket(INTERVAL '1 minute', ts) AS window_start, ts, value,
           coalesce(labels['service'], labels['job']) AS service,
           seconds_since(ts, time_bucket(INTERVAL '1 minute', ts)) AS elapsed
    FROM truth.metrics WHERE name = 'queue_depth'),
grouped AS (
    SELECT window_start, service, avg(value) AS depth, max(value) AS depth_max,
           -- Of several values at the last moment the greatest is the one that counts.
           max_by(value, (ts, value)) AS depth_last,
           CASE WHEN count(DISTINCT ts) >= 2 THEN regr_slope(value, elapsed) END AS slope
    FROM depths GROUP BY window_start, service)
SELECT window_start, window_start + INTERVAL '1 minute' AS window_end, service, depth, depth_max, depth_last, slope
FROM grouped;
