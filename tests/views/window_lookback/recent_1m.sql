-- Requests per service beside those of the minutes before, of which only two are remembered.
CREATE MATERIALIZED VIEW recent_1m WITH (lookback = '2 minutes') AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       lag(count(*)) OVER (PARTITION BY labels['service'] ORDER BY window_start) AS n_before,
       sum(count(*)) OVER (PARTITION BY labels['service'] ORDER BY window_start) AS n_remembered,
       row_number() OVER (PARTITION BY labels['service'] ORDER BY window_start) AS place
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
