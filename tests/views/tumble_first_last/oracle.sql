-- The value is looked up at the first and at the last time; of several there the greatest.
CREATE VIEW queue_ends_1m AS
WITH rows AS (SELECT *, labels['queue'] AS queue FROM windowed('metrics', '1 minute', '1 minute')),
     ends AS (SELECT window_start, window_end, queue, min(ts) AS first_at, max(ts) AS last_at FROM rows GROUP BY ALL),
     found AS (SELECT ends.*,
                      (SELECT max(value) FROM rows AS r WHERE r.queue = ends.queue AND r.ts = first_at) AS depth_first,
                      (SELECT max(value) FROM rows AS r WHERE r.queue = ends.queue AND r.ts = last_at) AS depth_last
               FROM ends)
SELECT window_start, window_end, queue, depth_first, depth_last, depth_last - depth_first AS grown_by, first_at, last_at
FROM found;
