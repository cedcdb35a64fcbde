-- A row is among the two costliest where fewer than two cost more.
CREATE VIEW costliest_1m AS
WITH totals AS (SELECT window_start, window_end, labels['service'] AS service, sum(value) AS total_seconds,
                       count(*) AS n
                FROM windowed('metrics', '1 minute', '1 minute', lateness := '20 seconds') GROUP BY ALL)
SELECT window_start, window_end, service, total_seconds, n
FROM totals
WHERE (SELECT count(*) FROM totals AS other
       WHERE other.window_start = totals.window_start AND other.total_seconds > totals.total_seconds) < 2;
