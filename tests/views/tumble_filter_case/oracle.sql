-- A group of which no row passes a filter counts 0; its mean and its maximum are NULL.
CREATE VIEW answers_1m AS
WITH rows AS (SELECT *, labels['service'] AS service, labels['status'] AS status, labels['region'] AS region
              FROM windowed('metrics', '1 minute', '1 minute'))
SELECT window_start, window_end, service,
       how_many(status = '503') AS failed, how_many(status = '503') AS failed_by_case,
       how_many(region = 'us' AND value > 0.1) AS slow_in_us,
       avg(if(status = '200', value, NULL)) AS mean_of_good, max(if(status = '404', value, NULL)) AS longest_not_found,
       sum(if(region = 'eu', value, -value)) AS eu_less_us
FROM rows
GROUP BY ALL;
