-- Requests of the last five minutes per team, every minute, of which some are held up and count in some windows only.
CREATE MATERIALIZED VIEW team_requests_5m_by_1m AS
SELECT window_start, window_end, owners.team AS team, count(*) AS n, sum(value) AS total_seconds
FROM metrics LEFT JOIN owners ON labels['service'] = owners.service
GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes'), owners.team;
