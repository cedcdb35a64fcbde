-- Requests of the last five minutes, every minute, per service.
CREATE MATERIALIZED VIEW asked_5m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
FROM metrics
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), labels['service'];
