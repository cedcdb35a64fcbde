-- The workflow that spent most time in the last five minutes, every minute: a limit in each of many overlapping
-- windows.
CREATE MATERIALIZED VIEW longest_5m_by_1m AS
SELECT window_start, window_end, subject AS workflow, sum(duration_ms) AS total_ms, count(*) AS n
FROM events
WHERE outcome = 'success'
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), subject
ORDER BY total_ms DESC
LIMIT 1;
