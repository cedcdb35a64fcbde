-- Requests by who they were for, by the class of the answer and by how fast it was: keys that are computed.
CREATE MATERIALIZED VIEW speeds_1m AS
SELECT window_start, window_end, upper(coalesce(labels['service'], labels['job'])) AS who,
       substr(labels['status'], 1, 1) || 'xx' AS class, CASE WHEN value >= 0.1 THEN 'slow' ELSE 'fast' END AS speed,
       labels['service'] IS NULL AS batch, count(*) AS n, sum(value) * 1000 AS total_ms
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), upper(coalesce(labels['service'], labels['job'])),
         substr(labels['status'], 1, 1) || 'xx', CASE WHEN value >= 0.1 THEN 'slow' ELSE 'fast' END,
         labels['service'] IS NULL;
