-- A service that fails more than a tenth of its requests. A minute with hardly any request proves nothing either way,
-- so it takes part only from 20 requests on.
--
-- severity: warning
-- for: 5m
-- summary: {service} fails {error_percent} % of its requests
-- description: {errors} of {n} requests of {service} failed within the last minute; more than 10 % did for 5 minutes.
SELECT service,
       n,
       errors,
       error_rate AS value,
       round(error_rate * 100, 1) AS error_percent
FROM service_errors_1m
WHERE error_rate > 0.10
  AND n >= 20;
