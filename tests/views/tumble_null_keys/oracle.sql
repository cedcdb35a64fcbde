-- What is missing is NULL, and NULL is a group like another.
CREATE VIEW requests_by_place_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region,
       count(*) AS n, count(*) - how_many(labels['status'] IS NULL) AS with_status, avg(value) AS mean_seconds
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;
