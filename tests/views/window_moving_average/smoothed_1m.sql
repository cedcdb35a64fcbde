-- Requests per service, averaged over this and the two rows before.
CREATE MATERIALIZED VIEW smoothed_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       avg(count(*)) OVER (PARTITION BY labels['service']
                           ORDER BY window_start ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS smoothed,
       max(max(value)) OVER (PARTITION BY labels['service']
                             ORDER BY window_start ROWS BETWEEN 4 PRECEDING AND 1 PRECEDING) AS longest_before
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
