-- The two busiest services of every region, every minute, with their place.
CREATE MATERIALIZED VIEW busiest_by_region_1m AS
SELECT window_start, window_end, region, service, n, place
FROM (SELECT window_start, window_end, labels['region'] AS region, labels['service'] AS service, count(*) AS n,
             row_number() OVER (PARTITION BY window_end, labels['region'] ORDER BY count(*) DESC,
                                labels['service']) AS place
      FROM metrics
      WHERE name = 'request_duration_seconds'
      GROUP BY tumble(ts, INTERVAL '1 minute'), labels['region'], labels['service']) AS ranked
WHERE place <= 2;
