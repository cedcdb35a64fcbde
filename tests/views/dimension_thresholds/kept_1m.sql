-- How many requests were as fast as was promised, per tier, of tiers one and two: columns of the table in a condition,
-- in a key, and beside the value inside an aggregate.
CREATE MATERIALIZED VIEW kept_1m AS
SELECT window_start, window_end, o.tier AS tier, count(*) AS n, count(*) FILTER (WHERE value <= o.slo_seconds) AS kept,
       max(value / o.slo_seconds) AS worst, min(o.slo_seconds) AS strictest
FROM metrics JOIN objectives AS o ON labels['service'] = o.service
WHERE name = 'request_duration_seconds' AND o.tier < 3
GROUP BY tumble(ts, INTERVAL '1 minute'), o.tier
HAVING count(*) FILTER (WHERE value <= o.slo_seconds) < count(*);
