-- Requests, queue and deployments of a service in one row; deployments only where there were any.
CREATE MATERIALIZED VIEW situation_1m AS
SELECT r.window_start, r.window_end, r.service, r.n, q.depth_max, d.deployments
FROM requests_1m AS r
JOIN depths_1m AS q ON r.window_end = q.window_end AND r.service = q.service
LEFT JOIN deployments_1m AS d ON r.window_end = d.window_end AND r.service = d.service;
