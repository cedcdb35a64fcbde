-- A run belongs to the five windows that begin in its own minute and in the four before. Told without `windowed`.
CREATE VIEW failures_5m_by_1m AS
WITH rows AS (SELECT *, date_trunc('minute', ts) - to_minutes(unnest(range(5))) AS window_start FROM events)
SELECT window_start, window_start + INTERVAL '5 minutes' AS window_end, subject AS workflow, count(*) AS n,
       how_many(outcome = 'failure') AS failures, avg(if(outcome = 'failure', 1, 0)) AS failure_rate
FROM rows
GROUP BY ALL;
