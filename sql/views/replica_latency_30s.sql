-- Request latency per replica: what tells a replica that drifts from its peers.
CREATE MATERIALIZED VIEW replica_latency_30s AS
SELECT window_start, window_end, labels['service'] AS service, labels['replica'] AS replica,
       count(*) AS n, hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.95) AS p95
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '30 seconds'), labels['service'], labels['replica'];
