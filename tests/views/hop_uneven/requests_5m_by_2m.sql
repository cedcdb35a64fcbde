-- Requests of the last five minutes, every two: a width that is not a multiple of the slide.
CREATE MATERIALIZED VIEW requests_5m_by_2m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region, count(*) AS n,
       avg(value) AS mean_seconds, max(value) AS longest
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY hop(ts, INTERVAL '2 minutes', INTERVAL '5 minutes'), labels['service'], labels['region'];
