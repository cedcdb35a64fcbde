-- The place of a service is one more than there are services before it.
CREATE VIEW busiest_by_region_1m AS
WITH counted AS (SELECT window_start, window_end, labels['region'] AS region, labels['service'] AS service,
                        count(*) AS n
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL),
     placed AS (SELECT *, 1 + (SELECT count(*) FROM counted AS other
                               WHERE (other.window_start, other.region) = (counted.window_start, counted.region)
                               AND (other.n > counted.n OR other.n = counted.n AND other.service < counted.service)
                              ) AS place
                FROM counted)
SELECT window_start, window_end, region, service, n, place
FROM placed
WHERE place <= 2;
