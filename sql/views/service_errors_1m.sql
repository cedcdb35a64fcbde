-- Requests that failed (status 500 and above), per service.
CREATE MATERIALIZED VIEW service_errors_1m AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) AS n,
       count(*) FILTER (WHERE labels['status'] >= '500') AS errors,
       CAST(count(*) FILTER (WHERE labels['status'] >= '500') AS DOUBLE) / count(*) AS error_rate
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
