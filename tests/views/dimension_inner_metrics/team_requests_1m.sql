-- Requests per team. Those of a service that nobody owns, or of none, are no team's.
CREATE MATERIALIZED VIEW team_requests_1m AS
SELECT window_start, window_end, owners.team AS team, count(*) AS n, count(DISTINCT owners.service) AS services,
       avg(value) AS mean_seconds
FROM metrics JOIN owners ON labels['service'] = owners.service
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), owners.team;
