-- A CAST to a whole number cuts the fraction off.
CREATE VIEW task_workers_2m AS
SELECT window_start, window_end, subject AS task, count(*) AS n,
       len(list_distinct(list(attributes['worker']))) AS workers,
       len(list_distinct(list(attributes['trace']))) AS traces, len(list_distinct(list(outcome))) AS outcomes,
       len(list_distinct(list(trunc(duration_ms / 10000)))) AS ten_second_steps
FROM windowed('events', '2 minutes', '2 minutes')
GROUP BY ALL;
