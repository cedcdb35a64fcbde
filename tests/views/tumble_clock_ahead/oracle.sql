-- The watermark is that of all rows, also of those that a view does not ask for.
CREATE VIEW load_1m AS
SELECT window_start, window_end, labels['host'] AS host, count(*) AS n, avg(value) AS mean_load
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;

CREATE VIEW load_6m_by_2m AS
SELECT window_start, window_end, labels['host'] AS host, count(*) AS n, avg(value) AS mean_load
FROM windowed('metrics', '2 minutes', '6 minutes')
GROUP BY ALL;

CREATE VIEW readings AS SELECT *, labels['host'] AS key FROM watched('metrics') WHERE labels['host'] IN ('h1', 'h2');

CREATE VIEW loaded AS
SELECT min(ts) AS window_start, max(ts) + INTERVAL '30 seconds' AS window_end, key AS host, count(*) AS n,
       max(value) AS load_max
FROM walked('readings', '30 seconds')
GROUP BY key, session;
