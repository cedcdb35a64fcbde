-- key: window_start, window_end, service
WITH changes AS (
    SELECT time_bucket(INTERVAL '5 minutes', ts) AS window_start, subject AS service, type
    FROM truth.events WHERE starts_with(type, 'dev.cdevents.service.'))
SELECT window_start, window_start + INTERVAL '5 minutes' AS window_end, service, count(*) AS n,
       count(*) FILTER (starts_with(type, 'dev.cdevents.service.rolledback.')) AS rollbacks
FROM changes GROUP BY window_start, service;
