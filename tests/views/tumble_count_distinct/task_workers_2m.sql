-- How many workers, traces and outcomes were seen per kind of task; a task without a trace counts for none.
CREATE MATERIALIZED VIEW task_workers_2m AS
SELECT window_start, window_end, subject AS task, count(*) AS n,
       count(DISTINCT attributes['worker']) AS workers, count(DISTINCT attributes['trace']) AS traces,
       count(DISTINCT outcome) AS outcomes, count(DISTINCT CAST(duration_ms / 10000 AS BIGINT)) AS ten_second_steps
FROM events
WHERE type = 'task.completed'
GROUP BY tumble(ts, INTERVAL '2 minutes'), subject;
