-- Times in which a node was busy, cut every five minutes where they do not end: half of the longest allowed.
CREATE MATERIALIZED VIEW busy AS
SELECT window_start, window_end, labels['node'] AS node, count(*) AS n, sum(value) AS work, max(ts) AS last_at
FROM metrics
WHERE name = 'busy'
GROUP BY session(ts, INTERVAL '30 seconds', INTERVAL '10 minutes'), labels['node'];
