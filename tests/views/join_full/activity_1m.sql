-- What happened to each service in a minute: requests, deployments, or both.
CREATE MATERIALIZED VIEW activity_1m AS
SELECT COALESCE(r.window_start, d.window_start) AS window_start, COALESCE(r.window_end, d.window_end) AS window_end,
       COALESCE(r.service, d.service) AS service, r.n, d.deployments,
       COALESCE(r.n, 0) + COALESCE(d.deployments, 0) AS happened
FROM requests_1m AS r FULL JOIN deployments_1m AS d ON r.window_end = d.window_end AND r.service = d.service;
