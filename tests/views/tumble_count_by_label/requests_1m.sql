-- How many requests each service answered, and how long they took in all and on average, a minute at a time.
CREATE MATERIALIZED VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) AS n, sum(value) AS total_seconds, avg(value) AS mean_seconds, min(value) AS shortest,
       max(value) AS longest
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
