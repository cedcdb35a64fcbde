-- Overviews from the metrics themselves, not from the view below them.
CREATE VIEW latency_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region, count(*) AS n,
       max(value) AS longest
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;

CREATE VIEW overview_1m AS
SELECT window_start, window_end, count(DISTINCT [labels['service'], labels['region']]) AS places,
       count(DISTINCT labels['service']) AS services, count(*) AS n, max(value) AS longest
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;

CREATE VIEW spread_1m AS
WITH sides AS (SELECT window_start, window_end, labels['service'] AS service, how_many(labels['region'] = 'eu') AS eu,
                      how_many(labels['region'] = 'us') AS us
               FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT window_start, window_end, service, abs(eu - us) AS apart
FROM sides
WHERE eu > 0 AND us > 0;
