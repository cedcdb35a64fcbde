-- Five windows for each row, of which those that had not closed count. Told without `windowed`.
CREATE VIEW requests_5m_by_1m AS
WITH rows AS (SELECT *, date_trunc('minute', ts) - to_minutes(unnest(range(5))) AS window_start FROM watched('metrics'))
SELECT window_start, window_start + INTERVAL '5 minutes' AS window_end, labels['service'] AS service, count(*) AS n,
       sum(value) AS total_seconds
FROM rows
WHERE window_start + INTERVAL '5 minutes' > watermark
GROUP BY ALL;
