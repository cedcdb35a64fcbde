-- Requests per service, a minute at a time.
CREATE MATERIALIZED VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds,
       max(value) AS longest, count(*) FILTER (WHERE labels['status'] = '503') AS failed
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
