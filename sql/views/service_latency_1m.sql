-- Request latency per service, a minute at a time: percentiles in seconds, and where the minute was heading.
CREATE MATERIALIZED VIEW service_latency_1m AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) AS n,
       hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.9) AS p90,
       hdr_quantile(value, 0.95) AS p95, hdr_quantile(value, 0.99) AS p99,
       trend(value, ts) AS slope, trend_direction(value, ts) AS direction
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
