-- Sessions of a team, over all of its services; a service without a team has sessions under NULL.
CREATE VIEW steps AS SELECT events.*, team AS key FROM events LEFT JOIN owners ON service = subject;

CREATE VIEW rollouts_of_team AS
SELECT min(ts) AS window_start, max(ts) + INTERVAL '1 minute' AS window_end, key AS team, count(*) AS steps,
       count(DISTINCT subject) AS services
FROM paused('steps', '1 minute')
GROUP BY key, session;
