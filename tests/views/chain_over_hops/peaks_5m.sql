-- The busiest two minutes that began in each five; those that began before it and reach into it belong to the one
-- before.
CREATE MATERIALIZED VIEW peaks_5m AS
SELECT window_start, window_end, service, max(n) AS n_peak, min(n) AS n_least, count(*) AS begun,
       max(longest) AS longest
FROM requests_2m_by_1m
GROUP BY tumble(window_start, INTERVAL '5 minutes'), service;
