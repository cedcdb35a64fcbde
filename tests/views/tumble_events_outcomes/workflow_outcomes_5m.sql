-- How workflows ended, per workflow and outcome, and how long they took; one that was cancelled has no duration.
CREATE MATERIALIZED VIEW workflow_outcomes_5m AS
SELECT window_start, window_end, subject AS workflow, outcome, count(*) AS n, count(duration_ms) AS timed,
       avg(duration_ms / 1000.0) AS mean_seconds, max(duration_ms) AS longest_ms
FROM events
WHERE type = 'workflow.completed'
GROUP BY tumble(ts, INTERVAL '5 minutes'), subject, outcome;
