-- Sittings of users at the query console: queries with less than half a minute between them. Some queries are nobody's.
CREATE MATERIALIZED VIEW query_sessions AS
SELECT window_start, window_end, labels['user'] AS who, labels['plan'] AS plan, count(*) AS n,
       avg(value) AS mean_seconds,
       hdr_quantile(value, 0.9) AS p90, trend(value, ts) AS slope, first_by_time(value, ts) AS first_seconds
FROM metrics
WHERE name = 'query_seconds'
GROUP BY session(ts, INTERVAL '30 seconds'), labels['user'], labels['plan'];
