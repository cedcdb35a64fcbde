-- Groups of one to about fifty values; the least and the greatest value are quantiles too.
CREATE VIEW latency_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, min(value) AS p0,
       hdr_quantile(value, 0.5) AS p50, hdr_quantile(value, 0.9) AS p90, hdr_quantile(value, 0.99) AS p99,
       max(value) AS p100
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;
