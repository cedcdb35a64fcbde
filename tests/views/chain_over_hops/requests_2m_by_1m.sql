-- Requests of the last two minutes, every minute, per service.
CREATE MATERIALIZED VIEW requests_2m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, max(value) AS longest
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '2 minutes'), labels['service'];
