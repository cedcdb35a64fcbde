-- Queues whose depth rose by more than a tenth since the window before: kept by a condition on what lies in the past.
CREATE MATERIALIZED VIEW jumps_2m AS
SELECT window_start, window_end, queue, depth, depth_before, depth / depth_before - 1 AS rise
FROM (SELECT window_start, window_end, labels['queue'] AS queue, avg(value) AS depth,
             lag(avg(value)) OVER (PARTITION BY labels['queue'] ORDER BY window_start) AS depth_before
      FROM metrics
      WHERE name = 'queue_depth'
      GROUP BY tumble(ts, INTERVAL '2 minutes'), labels['queue']) AS compared
WHERE depth > depth_before * 1.1;
