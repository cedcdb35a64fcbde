-- Everything about the last four minutes of a service that is not a sum: what panes know must be put together rightly.
CREATE MATERIALIZED VIEW shape_4m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, trend(value, ts) AS slope, stddev(value) AS sd,
       var_pop(value) AS variance, count(DISTINCT labels['region']) AS regions,
       count(DISTINCT labels['status']) AS statuses, hdr_quantile(value, 0.75) AS p75,
       first_by_time(value, ts) AS opened, last_by_time(value, ts) AS closed, min(ts) AS first_at,
       bool_and(value < 0.15) AS all_fast
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '4 minutes'), labels['service'];
