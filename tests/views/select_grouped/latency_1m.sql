-- Requests per service and region, a minute at a time.
CREATE MATERIALIZED VIEW latency_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region, count(*) AS n,
       max(value) AS longest
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'], labels['region'];
