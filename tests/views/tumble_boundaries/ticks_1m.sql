-- Rows on the very edges of minutes, rows on the edge of being late, and times in every spelling a producer may use.
CREATE MATERIALIZED VIEW ticks_1m AS
SELECT window_start, window_end, labels['probe'] AS probe, count(*) AS n, sum(value) AS total, min(ts) AS first_at,
       max(ts) AS last_at
FROM metrics
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['probe'];
