-- Requests per service, ten seconds at a time.
CREATE MATERIALIZED VIEW requests_10s AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service'];
