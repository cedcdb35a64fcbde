-- A window of two minutes belongs to the five minutes it begins in.
CREATE VIEW requests_2m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, max(value) AS longest
FROM windowed('metrics', '1 minute', '2 minutes')
GROUP BY ALL;

CREATE VIEW peaks_5m AS
WITH fives AS (SELECT *, time_bucket(INTERVAL '5 minutes', window_start) AS five FROM requests_2m_by_1m)
SELECT five AS window_start, five + INTERVAL '5 minutes' AS window_end, service, max(n) AS n_peak, min(n) AS n_least,
       count(*) AS begun, max(longest) AS longest
FROM fives
GROUP BY five, service;
