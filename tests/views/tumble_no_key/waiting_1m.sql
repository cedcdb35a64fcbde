-- How much work waits in all queues together, a minute at a time: no key at all. Minutes without readings are not
-- there.
CREATE MATERIALIZED VIEW waiting_1m AS
SELECT window_start, window_end, count(*) AS readings, avg(value) AS depth, max(value) AS depth_max
FROM metrics
WHERE name = 'queue_depth'
GROUP BY tumble(ts, INTERVAL '1 minute');
