-- The share that failed in the last three minutes, every minute, made of minutes.
CREATE MATERIALIZED VIEW failure_rate_3m_by_1m AS
SELECT window_start, window_end, workflow, sum(n) AS n, CAST(sum(failures) AS DOUBLE) / sum(n) AS failure_rate,
       max(n) AS n_max
FROM outcomes_1m
GROUP BY hop(window_start, INTERVAL '1 minute', INTERVAL '3 minutes'), workflow;
