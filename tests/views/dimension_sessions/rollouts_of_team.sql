-- Roll-outs per team, over all services that it owns: sessions whose key comes out of a table.
CREATE MATERIALIZED VIEW rollouts_of_team AS
SELECT window_start, window_end, owners.team AS team, count(*) AS steps, count(DISTINCT subject) AS services
FROM events LEFT JOIN owners ON subject = owners.service
GROUP BY session(ts, INTERVAL '1 minute'), owners.team;
