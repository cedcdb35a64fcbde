-- The share of workflows that failed in the last five minutes, every minute.
CREATE MATERIALIZED VIEW failures_5m_by_1m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n,
       count(*) FILTER (WHERE outcome = 'failure') AS failures,
       CAST(count(*) FILTER (WHERE outcome = 'failure') AS DOUBLE) / count(*) AS failure_rate
FROM events
WHERE type = 'workflow.completed'
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), subject;
