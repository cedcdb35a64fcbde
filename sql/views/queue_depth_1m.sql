-- Work that waits, per service: how much, and whether it is growing.
CREATE MATERIALIZED VIEW queue_depth_1m AS
SELECT window_start, window_end, coalesce(labels['service'], labels['job']) AS service,
       avg(value) AS depth, max(value) AS depth_max, last_by_time(value, ts) AS depth_last, trend(value, ts) AS slope
FROM metrics
WHERE name = 'queue_depth'
GROUP BY tumble(ts, INTERVAL '1 minute'), coalesce(labels['service'], labels['job']);
