-- Minutes of services in which more than one request in ten failed: a plain SELECT over a view.
CREATE MATERIALIZED VIEW failing_1m AS
SELECT window_start, window_end, upper(service) AS who, n, CAST(failed AS DOUBLE) / n AS failure_rate,
       CASE WHEN failed * 4 > n THEN 'critical' ELSE 'warning' END AS severity,
       window_end + INTERVAL '5 minutes' AS act_by
FROM requests_1m
WHERE failed * 10 > n AND service <> 'billing';
