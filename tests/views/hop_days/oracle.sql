-- A day is twenty-four hours.
CREATE VIEW disk_1d_by_12h AS
SELECT window_start, window_end, labels['host'] AS host, count(*) AS n, max(value) AS used_max,
       86400 * slope(value, seconds_into(ts, window_start)) AS growth_per_day
FROM windowed('metrics', '12 hours', '24 hours')
GROUP BY ALL;
