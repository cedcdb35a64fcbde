-- Share of a resource in use, per replica: 0 is idle, 1 is all of it.
CREATE MATERIALIZED VIEW resource_use_30s AS
SELECT window_start, window_end, labels['service'] AS service, labels['replica'] AS replica,
       labels['resource'] AS resource,
       avg(value) AS used_ratio, max(value) AS used_ratio_max
FROM metrics
WHERE name = 'resource_use_ratio'
GROUP BY tumble(ts, INTERVAL '30 seconds'), labels['service'], labels['replica'], labels['resource'];
