-- key: window_start, window_end, component
WITH reports AS (
    SELECT time_bucket(INTERVAL '10 seconds', ts) AS window_start, labels['component'] AS component, value
    FROM truth.metrics WHERE name = 'component_health')
SELECT window_start, window_start + INTERVAL '10 seconds' AS window_end, component, min(value) AS health, count(*) AS reports
FROM reports GROUP BY window_start, component;
