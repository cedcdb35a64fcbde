-- One value has a variance of 0 and, as a sample, no standard deviation. Of NULLs nothing is known.
CREATE VIEW latency_spread_1m AS
WITH rows AS (SELECT *, labels['service'] AS service FROM windowed('metrics', '1 minute', '1 minute')),
     centred AS (SELECT *, value - avg(value) OVER own AS off, min(value) OVER own = max(value) OVER own AS level
                 FROM rows WINDOW own AS (PARTITION BY window_start, service))
SELECT window_start, window_end, service, count(*) AS n,
       CASE WHEN count(*) > 1 THEN if(any_value(level), 0, sqrt(sum(off * off) / (count(*) - 1))) END AS sd,
       if(any_value(level), 0, sum(off * off) / count(*)) AS variance,
       max(value) < 0.2 AS all_fast, min(value) < 0.05 AS any_very_fast, NULL::BOOLEAN AS any_unknown
FROM centred
GROUP BY ALL;
