-- Each window is computed from all of its rows.
CREATE VIEW latency_10m_by_10s AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.95) AS p95
FROM windowed('metrics', '10 seconds', '10 minutes')
GROUP BY ALL;
