-- Windows of a minute; the gauges of the queue are another metric.
CREATE VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds,
       avg(value) AS mean_seconds, min(value) AS shortest, max(value) AS longest
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'request_duration_seconds'
GROUP BY ALL;
