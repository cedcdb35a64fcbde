-- What belongs to a row of requests is looked up for it; NULL equals nothing, so nothing is found for it.
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

CREATE VIEW requests_and_deployments_1m AS
WITH rows AS (SELECT r.*, (SELECT {'d': deployments, 'v': version} FROM deployments_1m AS d
                           WHERE d.window_start = r.window_start AND d.service = r.service) AS found
              FROM requests_1m AS r)
SELECT window_start, window_end, service, n, found.v AS version, ifnull(found.d, 0) AS deployments
FROM rows;
