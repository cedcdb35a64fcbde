-- Of these two the one that also took most time in all, where it did: a plain SELECT over a plain SELECT and a view.
CREATE MATERIALIZED VIEW heaviest_1m AS
SELECT l.window_start, l.window_end, l.service, r.total_seconds
FROM longest_1m AS l JOIN requests_1m AS r ON l.window_end = r.window_end AND l.service = r.service
ORDER BY r.total_seconds DESC
LIMIT 1;
