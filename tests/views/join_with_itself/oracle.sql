-- The sides are counted from the metrics, without any join.
CREATE VIEW by_region_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region, count(*) AS n
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;

CREATE VIEW eu_and_us_1m AS
SELECT window_start, window_end, labels['service'] AS service, how_many(labels['region'] = 'eu') AS n_eu,
       how_many(labels['region'] = 'us') AS n_us, n_eu - n_us AS apart
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY window_start, window_end, service
HAVING n_eu > 0 AND n_us > 0;
