-- How deep each queue was at the beginning and at the end of the minute; of two readings at one time the greater
-- counts.
CREATE MATERIALIZED VIEW queue_ends_1m AS
SELECT window_start, window_end, labels['queue'] AS queue, first_by_time(value, ts) AS depth_first,
       last_by_time(value, ts) AS depth_last, last_by_time(value, ts) - first_by_time(value, ts) AS grown_by,
       min(ts) AS first_at, max(ts) AS last_at
FROM metrics
WHERE name = 'queue_depth'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['queue'];
