-- Services that were asked in both regions, and how many more requests one region had.
CREATE MATERIALIZED VIEW spread_1m AS
SELECT window_start, window_end, service, max(n) - min(n) AS apart
FROM latency_1m
GROUP BY window_start, window_end, service
HAVING count(*) = 2;
