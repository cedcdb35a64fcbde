-- At most so many rows of each window, not of all windows together.
CREATE VIEW counted AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, avg(value) AS mean_seconds,
       max(value) AS longest
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;

CREATE VIEW busiest_1m AS
SELECT window_start, window_end, service, n, mean_seconds
FROM counted
WHERE (SELECT count(*) FROM counted AS other WHERE other.window_start = counted.window_start
       AND (other.n > counted.n OR other.n = counted.n AND other.service < counted.service)) < 2;

CREATE VIEW slowest_1m AS
SELECT window_start, window_end, service, longest
FROM counted
WHERE n > 7 AND longest = (SELECT max(longest) FROM counted AS other
                           WHERE other.window_start = counted.window_start AND other.n > 7);
