-- Requests in the minutes in which their service was deployed: a view of metrics beside a view of events.
CREATE MATERIALIZED VIEW deployed_and_asked_1m AS
SELECT r.window_start, r.window_end, r.service, r.n, r.failed, d.deployments, d.version,
       r.total_seconds / r.n AS mean_seconds
FROM requests_1m AS r JOIN deployments_1m AS d ON r.window_end = d.window_end AND r.service = d.service
WHERE r.n > 3;
