-- Percentiles over the last ten minutes, every ten seconds: sixty panes to a window.
CREATE MATERIALIZED VIEW latency_10m_by_10s AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.95) AS p95
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY hop(ts, INTERVAL '10 seconds', INTERVAL '10 minutes'), labels['service'];
