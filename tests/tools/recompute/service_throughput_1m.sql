-- key: window_start, window_end, service
WITH requests AS (
    SELECT time_bucket(INTERVAL '1 minute', ts) AS window_start, labels['service'] AS service
    FROM truth.metrics WHERE name = 'request_duration_seconds')
SELECT window_start, window_start + INTERVAL '1 minute' AS window_end, service, count(*) AS n,
       n::DOUBLE / 60 AS per_second
FROM requests GROUP BY window_start, service;
