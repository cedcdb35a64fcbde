-- Services of which at least two requests failed in a minute in which at least five came.
CREATE MATERIALIZED VIEW failing_1m AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) FILTER (WHERE labels['status'] <> '200') AS failed, max(value) AS longest
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service']
HAVING count(*) >= 5 AND count(*) FILTER (WHERE labels['status'] <> '200') >= 2;
