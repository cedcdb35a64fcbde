-- Load of each host, a minute at a time, of which one has a clock that is ahead: what comes after it is late for a
-- while.
CREATE MATERIALIZED VIEW load_1m AS
SELECT window_start, window_end, labels['host'] AS host, count(*) AS n, avg(value) AS mean_load
FROM metrics
WHERE name = 'load'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['host'];
