-- Every level from the requests themselves; only the peaks are looked up a level below.
CREATE VIEW requests_10s AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM windowed('metrics', '10 seconds', '10 seconds')
GROUP BY ALL;

CREATE VIEW requests_1m AS
WITH minutes AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
                        sum(value) AS total_seconds
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT window_start, window_end, service, n,
       (SELECT max(n) FROM requests_10s AS part WHERE part.service = minutes.service
        AND part.window_start >= minutes.window_start AND part.window_end <= minutes.window_end) AS n_peak,
       total_seconds
FROM minutes;

CREATE VIEW requests_5m AS
SELECT window_start, window_end, count(*) AS n,
       (SELECT max(n) FROM requests_10s AS part
        WHERE part.window_start >= rows.window_start AND part.window_end <= rows.window_end) AS n_peak,
       sum(value) AS total_seconds,
       (SELECT count(*) FROM requests_1m AS part
        WHERE n > 12 AND part.window_start >= rows.window_start AND part.window_end <= rows.window_end) AS busy_minutes,
       count(DISTINCT labels['service']) AS services
FROM windowed('metrics', '5 minutes', '5 minutes') AS rows
GROUP BY window_start, window_end;
