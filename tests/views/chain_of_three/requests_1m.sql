-- Requests per service, a minute at a time, and the busiest ten seconds of it.
CREATE MATERIALIZED VIEW requests_1m AS
SELECT window_start, window_end, service, sum(n) AS n, max(n) AS n_peak, sum(total_seconds) AS total_seconds
FROM requests_10s
GROUP BY tumble(window_start, INTERVAL '1 minute'), service;
