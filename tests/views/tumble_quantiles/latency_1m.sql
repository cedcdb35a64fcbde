-- Percentiles of request latency per service, in seconds. Every group is small enough for them to be exact.
CREATE MATERIALIZED VIEW latency_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       hdr_quantile(value, 0.0) AS p0, hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.9) AS p90,
       hdr_quantile(value, 0.99) AS p99, hdr_quantile(value, 1.0) AS p100
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
