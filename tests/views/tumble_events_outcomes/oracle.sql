-- An event without an outcome is in a group of its own.
CREATE VIEW workflow_outcomes_5m AS
SELECT window_start, window_end, subject AS workflow, outcome, count(*) AS n, count(duration_ms) AS timed,
       avg(duration_ms) / 1000 AS mean_seconds, max(duration_ms) AS longest_ms
FROM windowed('events', '5 minutes', '5 minutes')
GROUP BY ALL;
