-- What is late is judged within each stream on its own.
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

CREATE VIEW deployed_requests_1m AS
SELECT window_start, window_end, service, n, deployments
FROM requests_1m JOIN deployments_1m USING (window_start, window_end, service);
