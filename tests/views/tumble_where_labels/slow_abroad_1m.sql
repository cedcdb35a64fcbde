-- Slow requests outside eu, answered with 200 or 503, per region. A request of no known region is not outside eu.
CREATE MATERIALIZED VIEW slow_abroad_1m AS
SELECT window_start, window_end, labels['region'] AS region, count(*) AS n, avg(value) AS mean_seconds
FROM metrics
WHERE name LIKE 'request%seconds' AND value > 0.1 AND labels['region'] <> 'eu'
  AND labels['status'] IN ('200', '503') AND NOT (labels['service'] = 'billing' OR labels['nothing'] IS NOT NULL)
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['region'];
