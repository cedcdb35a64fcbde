-- Requests per service, and whether it was deployed in that minute.
CREATE MATERIALIZED VIEW effects_1m AS
SELECT r.window_start, r.window_end, r.service, r.n, r.failed, d.deployments IS NOT NULL AS deployed
FROM requests_1m AS r LEFT JOIN deployments_1m AS d ON r.window_end = d.window_end AND r.service = d.service;
