-- A service's first minute has none before it.
CREATE VIEW request_change_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL),
     compared AS (SELECT now.*, before.n AS n_before
                  FROM counted AS now ASOF LEFT JOIN counted AS before
                      ON before.service = now.service AND before.window_start < now.window_start)
SELECT window_start, window_end, service, n, n_before, n - n_before AS more
FROM compared;
