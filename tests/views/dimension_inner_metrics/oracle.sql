-- A request whose service has no owner has no team, and is left out.
CREATE VIEW team_requests_1m AS
WITH owned AS (SELECT *, (SELECT team FROM owners WHERE service = labels['service']) AS team
               FROM windowed('metrics', '1 minute', '1 minute'))
SELECT window_start, window_end, team, count(*) AS n, count(DISTINCT labels['service']) AS services,
       avg(value) AS mean_seconds
FROM owned
WHERE team IS NOT NULL
GROUP BY ALL;
