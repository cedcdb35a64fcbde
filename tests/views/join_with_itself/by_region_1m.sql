-- Requests per service and region, a minute at a time.
CREATE MATERIALIZED VIEW by_region_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region, count(*) AS n
FROM metrics
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'], labels['region'];
