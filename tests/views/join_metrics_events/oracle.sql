-- Windows are equal where both of their ends are.
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

CREATE VIEW deployed_and_asked_1m AS
SELECT window_start, window_end, service, n, failed, deployments, version, ratio(total_seconds, n) AS mean_seconds
FROM requests_1m JOIN deployments_1m USING (window_start, window_end, service)
WHERE n >= 4;
