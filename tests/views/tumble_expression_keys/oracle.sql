-- The same keys by other functions.
CREATE VIEW speeds_1m AS
WITH rows AS (SELECT *, ucase(ifnull(labels['service'], labels['job'])) AS who,
                     MAP {'200': '2xx', '404': '4xx', '503': '5xx'}[labels['status']] AS class,
                     if(value < 0.1, 'fast', 'slow') AS speed, map_contains(labels, 'job') AS batch
              FROM windowed('metrics', '1 minute', '1 minute'))
SELECT window_start, window_end, who, class, speed, batch, count(*) AS n, sum(1000 * value) AS total_ms
FROM rows
GROUP BY ALL;
