-- key: window_start, window_end, service, replica, resource
WITH reports AS (
    SELECT time_bucket(INTERVAL '30 seconds', ts) AS window_start, labels['service'] AS service,
           labels['replica'] AS replica, labels['resource'] AS resource, value
    FROM truth.metrics WHERE name = 'resource_use_ratio')
SELECT window_start, window_start + INTERVAL '30 seconds' AS window_end, service, replica, resource,
       avg(value) AS used_ratio, max(value) AS used_ratio_max
FROM reports GROUP BY window_start, service, replica, resource;
