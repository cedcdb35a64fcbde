-- Requests per service. Waits two seconds only: the same rows are late for one view and not for another.
CREATE MATERIALIZED VIEW hasty_1m WITH (lateness = '2s') AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
