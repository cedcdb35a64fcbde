-- How long batches took to load, per job: some three hundred a window, more than a sketch keeps one by one.
CREATE MATERIALIZED VIEW batch_load_30s AS
SELECT window_start, window_end, labels['job'] AS job, count(*) AS n,
       hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.95) AS p95, hdr_quantile(value, 0.99) AS p99
FROM metrics
WHERE name = 'batch_load_seconds'
GROUP BY tumble(ts, INTERVAL '30 seconds'), labels['job'];
