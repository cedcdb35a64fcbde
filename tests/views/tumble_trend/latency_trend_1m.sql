-- Where latency is heading, per service, in seconds per second: over all requests, and over those that went well.
CREATE MATERIALIZED VIEW latency_trend_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, trend(value, ts) AS slope,
       trend(value, ts) FILTER (WHERE labels['status'] = '200') AS slope_of_good,
       trend(value * 1000, ts) AS slope_ms
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
