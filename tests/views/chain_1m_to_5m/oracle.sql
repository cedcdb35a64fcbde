-- Straight from the requests, not from the minutes: but what was late for its minute is not in the five either.
CREATE VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds,
       max(value) AS longest, how_many(labels['status'] = '503') AS failed
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'request_duration_seconds'
GROUP BY ALL;

CREATE VIEW requests_5m AS
WITH rows AS (SELECT *, time_bucket(INTERVAL '5 minutes', ts) AS five FROM windowed('metrics', '1 minute', '1 minute'))
SELECT five AS window_start, five + INTERVAL '5 minutes' AS window_end, labels['service'] AS service, count(*) AS n,
       avg(value) AS mean_seconds, max(value) AS longest, count(DISTINCT window_start) AS minutes,
       how_many(labels['status'] = '503') AS failed
FROM rows
GROUP BY five, service;
