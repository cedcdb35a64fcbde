-- What every service measured, window by window. `run.py` fills in what stands in braces.
CREATE MATERIALIZED VIEW window_stats WITH (lateness = '{lateness_s}s', topic = '{output}') AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) AS n, sum(value) AS total, min(value) AS least, max(value) AS most, avg(value) AS mean
FROM metrics
WHERE name = '{name}'
GROUP BY {window}, labels['service'];
