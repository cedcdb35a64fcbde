-- Requests per service and region, of which some reports lack the one, the other, both, or all of their labels.
CREATE MATERIALIZED VIEW requests_by_place_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region,
       count(*) AS n, count(labels['status']) AS with_status, avg(value) AS mean_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'], labels['region'];
