-- No row is late, so that the minute of a row is all there is to know.
CREATE VIEW waiting_1m AS
SELECT date_trunc('minute', ts) AS window_start, window_start + INTERVAL '1 minute' AS window_end,
       count(*) AS readings, sum(value) / count(*) AS depth, max(value) AS depth_max
FROM metrics
GROUP BY 1;
