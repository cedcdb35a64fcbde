-- Deployments, upgrades and rollbacks per service, from CDEvents.
CREATE MATERIALIZED VIEW deployments_5m AS
SELECT window_start, window_end, subject AS service, count(*) AS n,
       count(*) FILTER (WHERE type LIKE 'dev.cdevents.service.rolledback.%') AS rollbacks
FROM events
WHERE type LIKE 'dev.cdevents.service.%'
GROUP BY tumble(ts, INTERVAL '5 minutes'), subject;
