-- A row is among the two longest where fewer than two are longer.
CREATE VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds,
       max(value) AS longest, how_many(labels['status'] = '503') AS failed
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'request_duration_seconds'
GROUP BY ALL;

CREATE VIEW longest_1m AS
SELECT window_start, window_end, service, longest
FROM requests_1m AS mine
WHERE n > 4 AND 2 > (SELECT count(*) FROM requests_1m AS other
                     WHERE other.n > 4 AND other.window_start = mine.window_start AND other.longest > mine.longest);

CREATE VIEW heaviest_1m AS
WITH both_told AS (SELECT r.* FROM requests_1m AS r
                   SEMI JOIN longest_1m AS l ON l.window_start = r.window_start AND l.service = r.service)
SELECT window_start, window_end, arg_max(service, total_seconds) AS service, max(total_seconds) AS total_seconds
FROM both_told
GROUP BY ALL;
