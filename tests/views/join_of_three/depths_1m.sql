-- How deep the queue of each service was, a minute at a time.
CREATE MATERIALIZED VIEW depths_1m AS
SELECT window_start, window_end, labels['service'] AS service, max(value) AS depth_max
FROM metrics
WHERE name = 'queue_depth'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
