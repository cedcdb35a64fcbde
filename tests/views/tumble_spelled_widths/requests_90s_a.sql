-- Requests in a minute and a half, a width that may be spelled in many ways; here: '90 seconds'.
CREATE MATERIALIZED VIEW requests_90s_a AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '90 seconds'), labels['service'];
