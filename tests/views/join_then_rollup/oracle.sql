-- The windows of five minutes are made from the requests, not from the join.
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

CREATE VIEW effects_1m AS
SELECT r.window_start, r.window_end, r.service, r.n, r.failed,
       EXISTS (FROM deployments_1m AS d WHERE d.window_start = r.window_start AND d.service = r.service) AS deployed
FROM requests_1m AS r;

-- From the requests themselves.
CREATE VIEW effects_5m AS
WITH rows AS (SELECT m.*, EXISTS (FROM events AS e WHERE e.outcome = 'success' AND e.subject = m.labels['service']
                                  AND date_trunc('minute', e.ts) = date_trunc('minute', m.ts)) AS deployed
              FROM windowed('metrics', '5 minutes', '5 minutes') AS m)
SELECT window_start, window_end, labels['service'] AS service, deployed,
       count(DISTINCT date_trunc('minute', ts)) AS minutes, count(*) AS n,
       avg(if(labels['status'] = '503', 1, 0)) AS failure_rate
FROM rows
GROUP BY ALL;
