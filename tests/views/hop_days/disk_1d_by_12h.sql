-- How full disks were, day by day and from noon to noon: a day is twenty-four hours, from midnight UTC.
CREATE MATERIALIZED VIEW disk_1d_by_12h AS
SELECT window_start, window_end, labels['host'] AS host, count(*) AS n, max(value) AS used_max,
       trend(value, ts) * 86400 AS growth_per_day
FROM metrics
WHERE name = 'disk_used_bytes'
GROUP BY hop(ts, INTERVAL '12 hours', INTERVAL '1 day'), labels['host'];
