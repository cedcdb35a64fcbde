-- The one with most time of each window.
CREATE VIEW longest_5m_by_1m AS
WITH totals AS (SELECT window_start, window_end, subject AS workflow, sum(duration_ms) AS total_ms, count(*) AS n
                FROM windowed('events', '1 minute', '5 minutes') WHERE outcome = 'success' GROUP BY ALL)
SELECT window_start, window_end, arg_max(workflow, total_ms) AS workflow, max(total_ms) AS total_ms,
       arg_max(n, total_ms) AS n
FROM totals
GROUP BY ALL;
