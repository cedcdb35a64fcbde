-- Times in which a node was alive: no more than half a minute between heartbeats. Heartbeats come up to fifty seconds
-- after their time, often when what is before them and what is after them were two sessions: then they make one of
-- them.
CREATE MATERIALIZED VIEW alive WITH (lateness = '1m') AS
SELECT window_start, window_end, labels['node'] AS node, count(*) AS heartbeats, min(ts) AS first_at
FROM metrics
WHERE name = 'heartbeat'
GROUP BY session(ts, INTERVAL '30 seconds'), labels['node'];
