-- The greatest pair of count and name is the busiest; of equals the later name.
CREATE VIEW busiest_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT window_start, window_end, max({'n': n, 'service': service}).service AS service, max(n) AS n
FROM counted
GROUP BY ALL;

CREATE VIEW times_busiest_5m AS
WITH fives AS (SELECT *, time_bucket(INTERVAL '5 minutes', window_start) AS five FROM busiest_1m)
SELECT five AS window_start, five + INTERVAL '5 minutes' AS window_end, service, count(*) AS times, avg(n) AS mean_n
FROM fives
GROUP BY five, service;
