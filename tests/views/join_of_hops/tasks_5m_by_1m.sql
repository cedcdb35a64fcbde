-- Tasks that ended in the last five minutes, every minute, per service.
CREATE MATERIALIZED VIEW tasks_5m_by_1m AS
SELECT window_start, window_end, subject AS service, count(*) AS tasks, sum(duration_ms) AS total_ms
FROM events
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), subject;
