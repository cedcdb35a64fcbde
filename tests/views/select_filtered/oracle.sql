-- The same conditions as shares of requests; act_by counts from the start of the minute.
CREATE VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds,
       max(value) AS longest, how_many(labels['status'] = '503') AS failed
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'request_duration_seconds'
GROUP BY ALL;

CREATE VIEW failing_1m AS
SELECT window_start, window_end, ucase(service) AS who, n, ratio(failed, n) AS failure_rate,
       if(failed / n > 0.25, 'critical', 'warning') AS severity, window_start + INTERVAL '6 minutes' AS act_by
FROM requests_1m
WHERE failed / n > 0.1 AND service IN ('checkout', 'search', 'cart');
