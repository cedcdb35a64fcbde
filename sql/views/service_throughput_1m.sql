-- Requests per second, per service: the load that scaling targets are planned on.
CREATE MATERIALIZED VIEW service_throughput_1m AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) AS n, count(*) / 60.0 AS per_second
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
