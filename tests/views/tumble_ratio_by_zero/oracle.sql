-- Whole numbers divide to whole numbers; a division by zero is NULL.
CREATE VIEW failed_ratio_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
                        how_many(labels['status'] = '200') AS good,
                        n - good AS failed, avg(if(labels['status'] = '503', value, NULL)) AS mean_of_503
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT window_start, window_end, service, n, ratio(failed, good) AS failed_per_good,
       CASE WHEN good > 0 THEN failed // good END AS whole_failed_per_good, mean_of_503
FROM counted;
