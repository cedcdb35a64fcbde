-- All requests, with the deployments of their service in the same minute where there were any. What is of no service is
-- of no deployment either: NULL equals nothing.
CREATE MATERIALIZED VIEW requests_and_deployments_1m AS
SELECT r.window_start, r.window_end, r.service, r.n, d.version, COALESCE(d.deployments, 0) AS deployments
FROM requests_1m AS r LEFT JOIN deployments_1m AS d ON r.window_end = d.window_end AND r.service = d.service;
