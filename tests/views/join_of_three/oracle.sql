-- All three told as one list of facts, then put together by minute and service.
CREATE VIEW requests_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds,
       max(value) AS longest, how_many(labels['status'] = '503') AS failed
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'request_duration_seconds'
GROUP BY ALL;

CREATE VIEW deployments_1m AS
SELECT window_start, window_end, subject AS service, count(*) AS deployments, max(attributes['version']) AS version
FROM windowed('events', '1 minute', '1 minute')
WHERE outcome = 'success'
GROUP BY ALL;

CREATE VIEW depths_1m AS
SELECT window_start, window_end, labels['service'] AS service, max(value) AS depth_max
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'queue_depth'
GROUP BY ALL;

CREATE VIEW situation_1m AS
WITH facts AS (SELECT window_start, window_end, service, n, NULL AS depth_max, NULL AS deployments FROM requests_1m
               UNION ALL SELECT window_start, window_end, service, NULL, depth_max, NULL FROM depths_1m
               UNION ALL SELECT window_start, window_end, service, NULL, NULL, deployments FROM deployments_1m)
SELECT window_start, window_end, service, max(n) AS n, max(depth_max) AS depth_max, max(deployments) AS deployments
FROM facts
GROUP BY ALL
HAVING count(n) = 1 AND count(depth_max) = 1;
