-- Every minute in one row: aggregates over what a view has in one window, without a window of their own.
CREATE MATERIALIZED VIEW overview_1m AS
SELECT window_start, window_end, count(*) AS places, count(DISTINCT service) AS services, sum(n) AS n,
       max(longest) AS longest
FROM latency_1m
GROUP BY window_start, window_end;
