-- There are readings in every window, so that the row before is that of two minutes before.
CREATE VIEW jumps_2m AS
WITH depths AS (SELECT window_start, window_end, labels['queue'] AS queue, avg(value) AS depth
                FROM windowed('metrics', '2 minutes', '2 minutes') GROUP BY ALL)
SELECT now.window_start, now.window_end, queue, now.depth, before.depth AS depth_before,
       (now.depth - before.depth) / before.depth AS rise
FROM depths AS now JOIN depths AS before USING (queue)
WHERE before.window_end = now.window_start AND now.depth > 1.1::DOUBLE * before.depth;
