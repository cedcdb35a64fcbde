-- Requests of the last five minutes, every minute. A row that is held up counts in those of its windows that are still
-- open when it comes, and in no other.
CREATE MATERIALIZED VIEW requests_5m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), labels['service'];
