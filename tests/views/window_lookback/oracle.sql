-- Of a window that ends at e, rows are seen of windows that end in (e - 2 minutes - 1 minute, e]: its own and the two
-- before.
CREATE VIEW recent_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT now.window_start, now.window_end, now.service, now.n,
       arg_max(seen.n, seen.window_end) FILTER (WHERE seen.window_end < now.window_end) AS n_before,
       sum(seen.n) AS n_remembered, count(*) AS place
FROM counted AS now JOIN counted AS seen
    ON seen.service = now.service AND seen.window_end <= now.window_end
        AND seen.window_end > now.window_end - INTERVAL '3 minutes'
GROUP BY ALL;
