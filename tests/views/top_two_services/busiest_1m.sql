-- The two busiest services of every minute; of equals the one whose name comes first.
CREATE MATERIALIZED VIEW busiest_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, avg(value) AS mean_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service']
ORDER BY count(*) DESC, labels['service']
LIMIT 2;
