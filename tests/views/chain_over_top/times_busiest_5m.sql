-- How often each service was the busiest in five minutes.
CREATE MATERIALIZED VIEW times_busiest_5m AS
SELECT window_start, window_end, service, count(*) AS times, avg(n) AS mean_n
FROM busiest_1m
GROUP BY tumble(window_start, INTERVAL '5 minutes'), service;
