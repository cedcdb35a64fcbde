-- Requests per service. Waits a minute for what is held up: the same rows are late for one view and not for another.
CREATE MATERIALIZED VIEW patient_1m WITH (lateness = '1m') AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
