-- Failed requests for each good one, per service. Where there was no good one there is no ratio.
CREATE MATERIALIZED VIEW failed_ratio_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       CAST(count(*) FILTER (WHERE labels['status'] >= '400') AS DOUBLE)
           / count(*) FILTER (WHERE labels['status'] = '200') AS failed_per_good,
       count(*) FILTER (WHERE labels['status'] >= '400')
           / count(*) FILTER (WHERE labels['status'] = '200') AS whole_failed_per_good,
       sum(value) FILTER (WHERE labels['status'] = '503')
           / count(*) FILTER (WHERE labels['status'] = '503') AS mean_of_503
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
