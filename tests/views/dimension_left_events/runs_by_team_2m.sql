-- Runs per team, those of workflows that nobody has entered among them, under a team that is NULL.
CREATE MATERIALIZED VIEW runs_by_team_2m AS
SELECT window_start, window_end, workflows.team AS team, workflows.wakes AS wakes, count(*) AS n,
       count(workflows.slots) AS known,
       sum(workflows.slots) AS slots, count(*) FILTER (WHERE outcome = 'failure' AND workflows.wakes) AS woken
FROM events LEFT JOIN workflows ON subject = workflows.workflow
WHERE type = 'workflow.completed'
GROUP BY tumble(ts, INTERVAL '2 minutes'), workflows.team, workflows.wakes;
