-- A metric whose producer says neither is a gauge without a unit.
CREATE VIEW seen_1m AS
SELECT window_start, window_end, name, kind, unit, count(*) AS n,
       if(bool_or(map_contains(labels, 'host')), 1, 0) AS hosts, max(value) AS greatest
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;
