-- What was measured at all: every metric with its kind and unit, whatever its name.
CREATE MATERIALIZED VIEW seen_1m AS
SELECT window_start, window_end, name, kind, unit, count(*) AS n, count(DISTINCT labels['host']) AS hosts,
       max(value) AS greatest
FROM metrics
GROUP BY tumble(ts, INTERVAL '1 minute'), name, kind, unit;
