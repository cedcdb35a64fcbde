-- With fewer than two points there is no line, and the slope is NULL.
CREATE VIEW latency_trend_1m AS
WITH rows AS (SELECT *, labels['service'] AS service, seconds_into(ts, window_start) AS elapsed,
                     if(labels['status'] = '200', value, NULL) AS good
              FROM windowed('metrics', '1 minute', '1 minute'))
SELECT window_start, window_end, service, count(*) AS n, slope(value, elapsed) AS slope,
       slope(good, elapsed) AS slope_of_good, 1000 * slope(value, elapsed) AS slope_ms
FROM rows
GROUP BY ALL;
