-- approximate: p50 0.01
-- approximate: p95 0.01
-- approximate: p99 0.01
CREATE VIEW batch_load_30s AS
SELECT window_start, window_end, labels['job'] AS job, count(*) AS n,
       hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.95) AS p95, hdr_quantile(value, 0.99) AS p99
FROM windowed('metrics', '30 seconds', '30 seconds')
GROUP BY ALL;
