-- Requests and deployments of a service in the same minute, where some of both are held up: each stream has a watermark
-- of its own, and what is late on one side is missing there alone.
CREATE MATERIALIZED VIEW deployed_requests_1m AS
SELECT r.window_start, r.window_end, r.service, r.n, d.deployments
FROM requests_1m AS r JOIN deployments_1m AS d ON r.window_end = d.window_end AND r.service = d.service;
