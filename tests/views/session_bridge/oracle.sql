-- None is late, so the order of arrival cannot matter.
CREATE VIEW heartbeats AS SELECT *, labels['node'] AS key FROM metrics;

CREATE VIEW alive AS
SELECT min(ts) AS window_start, max(ts) + INTERVAL '30 seconds' AS window_end, key AS node, count(*) AS heartbeats,
       min(ts) AS first_at
FROM paused('heartbeats', '30 seconds')
GROUP BY key, session;
