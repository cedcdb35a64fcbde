-- Requests per service. Waits as long as the runner does where a view says nothing: the same rows are late for one view
-- and not for another.
CREATE MATERIALIZED VIEW usual_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
