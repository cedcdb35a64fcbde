-- Whoever has no plan has none in all of their queries, so that the user alone is the key.
CREATE VIEW queries AS SELECT *, labels['user'] AS key FROM metrics;

CREATE VIEW query_sessions AS
WITH rows AS (SELECT *, min(ts) OVER (PARTITION BY key, session) AS began FROM paused('queries', '30 seconds'))
SELECT began AS window_start, max(ts) + INTERVAL '30 seconds' AS window_end, key AS who, labels['plan'] AS plan,
       count(*) AS n, avg(value) AS mean_seconds, hdr_quantile(value, 0.9) AS p90,
       slope(value, seconds_into(ts, began)) AS slope, first_by_time(value, ts) AS first_seconds
FROM rows
GROUP BY key, session, began, plan;
