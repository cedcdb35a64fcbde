-- Five minutes of requests, made of minutes: a row's time is the start of its window.
CREATE MATERIALIZED VIEW requests_5m AS
SELECT window_start, window_end, service, sum(n) AS n, sum(total_seconds) / sum(n) AS mean_seconds,
       max(longest) AS longest, count(*) AS minutes, sum(failed) AS failed
FROM requests_1m
GROUP BY tumble(window_start, INTERVAL '5 minutes'), service;
