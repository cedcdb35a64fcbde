-- Both from the events themselves; how many a minute had is counted beside each row of it.
CREATE VIEW outcomes_1m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n, how_many(outcome = 'failure') AS failures
FROM windowed('events', '1 minute', '1 minute')
GROUP BY ALL;

CREATE VIEW failure_rate_3m_by_1m AS
WITH rows AS (SELECT window_start, window_end, subject AS workflow, outcome, date_trunc('minute', ts) AS minute,
                     count(*) OVER (PARTITION BY window_start, workflow, minute) AS n_of_minute
              FROM windowed('events', '1 minute', '3 minutes'))
SELECT window_start, window_end, workflow, count(*) AS n, avg(if(outcome = 'failure', 1, 0)) AS failure_rate,
       max(n_of_minute) AS n_max
FROM rows
GROUP BY ALL;
