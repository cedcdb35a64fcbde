-- Of equals the name that comes first.
CREATE VIEW busiest_of_team_1m AS
WITH counted AS (SELECT window_start, window_end, owners.team, owners.service, count(*) AS n
                 FROM windowed('metrics', '1 minute', '1 minute') JOIN owners ON owners.service = labels['service']
                 GROUP BY ALL)
SELECT window_start, window_end, team, min(service) AS service, n
FROM counted
WHERE n = (SELECT max(n) FROM counted AS other
           WHERE other.window_start = counted.window_start AND other.team = counted.team)
GROUP BY window_start, window_end, team, n;
