-- Windows begin at multiples of three minutes since 1970; each row is judged for each of its windows.
CREATE VIEW ended_7m_by_3m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n, sum(duration_ms) AS total_ms
FROM windowed('events', '3 minutes', '7 minutes')
WHERE outcome = 'success'
GROUP BY ALL;
