-- Workflows that ended in the last five minutes, every minute, and the share of them that failed.
CREATE MATERIALIZED VIEW workflow_outcomes_5m_by_1m AS
SELECT window_start, window_end, subject AS workflow,
       count(*) AS n,
       count(*) FILTER (WHERE outcome = 'failure') AS failures,
       CAST(count(*) FILTER (WHERE outcome = 'failure') AS DOUBLE) / count(*) AS failure_rate
FROM events
WHERE type = 'workflow.completed'
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), subject;
