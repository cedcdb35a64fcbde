-- A workflow of whose runs more than a fifth fail. Judged from 5 runs on: below, one failure is a fifth already.
--
-- severity: critical
-- for: 10m
-- summary: {workflow} fails {failure_percent} % of its runs
-- description: {failures} of {n} runs of {workflow} failed in the last 5 minutes; more than 20 % did for 10 minutes.
SELECT workflow,
       n,
       failures,
       failure_rate AS value,
       round(failure_rate * 100, 1) AS failure_percent
FROM workflow_outcomes_5m_by_1m
WHERE failure_rate > 0.20
  AND n >= 5;
