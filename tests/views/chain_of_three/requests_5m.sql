-- All requests, five minutes at a time, and the minutes of services in which more than twelve came.
CREATE MATERIALIZED VIEW requests_5m AS
SELECT window_start, window_end, sum(n) AS n, max(n_peak) AS n_peak, sum(total_seconds) AS total_seconds,
       count(*) FILTER (WHERE n > 12) AS busy_minutes, count(DISTINCT service) AS services
FROM requests_1m
GROUP BY tumble(window_start, INTERVAL '5 minutes');
