-- A service whose slowest twentieth of requests takes more than a second. Below 20 requests a minute the 95th
-- percentile is the slowest request or its neighbour, and would wake people for a single one.
--
-- severity: warning
-- for: 3m
-- summary: {service} answers slowly: 95th percentile {value} s
-- description: One in twenty of {n} requests of {service} took over {value} s within a minute; over 1 s for 3 minutes.
SELECT service,
       n,
       p95 AS value
FROM service_latency_1m
WHERE p95 > 1.0
  AND n >= 20;
