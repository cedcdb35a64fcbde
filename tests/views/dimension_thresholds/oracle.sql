-- Every request beside every objective, of which only its own service's counts.
CREATE VIEW kept_1m AS
SELECT window_start, window_end, tier, count(*) AS n, how_many(value <= slo_seconds) AS kept,
       max(ratio(value, slo_seconds)) AS worst, min(slo_seconds) AS strictest
FROM windowed('metrics', '1 minute', '1 minute') CROSS JOIN objectives
WHERE service = labels['service'] AND tier IN (1, 2)
GROUP BY window_start, window_end, tier
HAVING how_many(value > slo_seconds) > 0;
