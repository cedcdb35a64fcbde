-- Health of each component: 1 as long as every report says so, 0 otherwise.
CREATE MATERIALIZED VIEW component_health_10s AS
SELECT window_start, window_end, labels['component'] AS component, min(value) AS health, count(*) AS reports
FROM metrics
WHERE name = 'component_health'
GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['component'];
