-- Windows begin at even minutes; a row is in two or three of them.
CREATE VIEW requests_5m_by_2m AS
SELECT window_start, window_end, labels['service'] AS service, labels['region'] AS region, count(*) AS n,
       avg(value) AS mean_seconds, max(value) AS longest
FROM windowed('metrics', '2 minutes', '5 minutes')
GROUP BY ALL;
