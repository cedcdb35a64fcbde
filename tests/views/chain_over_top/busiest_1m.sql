-- The busiest service of every minute.
CREATE MATERIALIZED VIEW busiest_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service']
ORDER BY count(*) DESC, labels['service'] DESC
LIMIT 1;
