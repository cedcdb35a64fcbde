-- Each window is computed from all of its rows, so that nothing is put together from panes.
CREATE VIEW shape_4m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, slope(value, seconds_into(ts, window_start)) AS slope,
       stddev_samp(value) AS sd, var_pop(value) AS variance, count(DISTINCT labels['region']) AS regions,
       count(DISTINCT labels['status']) AS statuses, hdr_quantile(value, 0.75) AS p75,
       first_by_time(value, ts) AS opened, last_by_time(value, ts) AS closed, min(ts) AS first_at,
       max(value) < 0.15 AS all_fast
FROM windowed('metrics', '1 minute', '4 minutes')
GROUP BY ALL;
