-- What ended in seven minutes, every three, of which some is held up: uneven windows, each with its own moment to
-- close.
CREATE MATERIALIZED VIEW ended_7m_by_3m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n, sum(duration_ms) AS total_ms
FROM events
WHERE outcome = 'success'
GROUP BY hop(ts, INTERVAL '3 minutes', INTERVAL '7 minutes'), subject;
