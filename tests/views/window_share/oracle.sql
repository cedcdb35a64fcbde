-- The whole is counted on its own; a place is one more than there are services with more requests.
CREATE VIEW share_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL),
     whole AS (SELECT window_start, count(*) AS n_all FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT window_start, window_end, service, n, n_all, ratio(n, n_all) AS share,
       1 + (SELECT count(*) FROM counted AS other
            WHERE other.window_start = counted.window_start AND other.n > counted.n) AS place
FROM counted JOIN whole USING (window_start);
