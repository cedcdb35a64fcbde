-- How many requests more than in the minute before in which there were any, per service.
CREATE MATERIALIZED VIEW request_change_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       lag(count(*)) OVER (PARTITION BY labels['service'] ORDER BY window_start) AS n_before,
       count(*) - lag(count(*)) OVER (PARTITION BY labels['service'] ORDER BY window_start) AS more
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
