-- key: window_start, window_end, workflow
WITH runs AS (
    SELECT subject AS workflow, outcome, time_bucket(INTERVAL '1 minute', ts) - slide * INTERVAL '1 minute' AS window_start
    FROM truth.events, range(5) AS slides(slide) WHERE type = 'workflow.completed')
SELECT window_start, window_start + INTERVAL '5 minutes' AS window_end, workflow, count(*) AS n,
       count(*) FILTER (outcome = 'failure') AS failures, failures / n::DOUBLE AS failure_rate
FROM runs GROUP BY window_start, workflow;
