-- The busiest service of every team, every minute.
CREATE MATERIALIZED VIEW busiest_of_team_1m AS
SELECT window_start, window_end, team, service, n
FROM (SELECT window_start, window_end, owners.team AS team, owners.service AS service, count(*) AS n,
             row_number() OVER (PARTITION BY window_end, owners.team ORDER BY count(*) DESC, owners.service) AS place
      FROM metrics JOIN owners ON labels['service'] = owners.service
      GROUP BY tumble(ts, INTERVAL '1 minute'), owners.team, owners.service) AS ranked
WHERE place = 1;
