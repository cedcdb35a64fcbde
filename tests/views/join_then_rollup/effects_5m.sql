-- Requests of minutes with and without a deployment, five minutes at a time: windows over a join.
CREATE MATERIALIZED VIEW effects_5m AS
SELECT window_start, window_end, service, deployed, count(*) AS minutes, sum(n) AS n,
       CAST(sum(failed) AS DOUBLE) / sum(n) AS failure_rate
FROM effects_1m
GROUP BY tumble(window_start, INTERVAL '5 minutes'), service, deployed;
