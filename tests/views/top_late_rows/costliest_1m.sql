-- The two services that spent most time in every minute. What comes after the minute has closed changes no ranking.
CREATE MATERIALIZED VIEW costliest_1m WITH (lateness = '20s') AS
SELECT window_start, window_end, labels['service'] AS service, sum(value) AS total_seconds, count(*) AS n
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service']
ORDER BY sum(value) DESC
LIMIT 2;
