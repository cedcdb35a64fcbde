-- The service with the longest request of every minute, among those with more than seven.
CREATE MATERIALIZED VIEW slowest_1m AS
SELECT window_start, window_end, labels['service'] AS service, max(value) AS longest
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service']
HAVING count(*) > 7
ORDER BY longest DESC
LIMIT 1;
