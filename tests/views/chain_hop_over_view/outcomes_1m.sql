-- How workflows ended, a minute at a time.
CREATE MATERIALIZED VIEW outcomes_1m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n,
       count(*) FILTER (WHERE outcome = 'failure') AS failures
FROM events
GROUP BY tumble(ts, INTERVAL '1 minute'), subject;
