-- Requests and deployments on their own first.
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

-- Both told as one list of facts, then put together by minute and service.
CREATE VIEW activity_1m AS
WITH facts AS (SELECT window_start, window_end, service, n, NULL AS deployments FROM requests_1m
               UNION ALL SELECT window_start, window_end, service, NULL, deployments FROM deployments_1m)
SELECT window_start, window_end, service, max(n) AS n, max(deployments) AS deployments,
       coalesce(max(n), 0) + coalesce(max(deployments), 0) AS happened
FROM facts
GROUP BY ALL;
