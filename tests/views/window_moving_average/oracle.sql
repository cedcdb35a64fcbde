-- Rows before, not minutes before: a minute without requests of the service is no row.
CREATE VIEW smoothed_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, max(value) AS longest
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL),
     placed AS (SELECT *, (SELECT count(*) FROM counted AS c
                           WHERE c.service = counted.service AND c.window_start < counted.window_start) AS place
                FROM counted)
SELECT now.window_start, now.window_end, now.service, now.n,
       avg(near.n) FILTER (WHERE near.place >= now.place - 2) AS smoothed,
       max(near.longest) FILTER (WHERE near.place < now.place) AS longest_before
FROM placed AS now JOIN placed AS near ON near.service = now.service AND near.place BETWEEN now.place - 4 AND now.place
GROUP BY now.window_start, now.window_end, now.service, now.n;
