-- Roll-outs, per service: steps of one belong together while no two of them are more than ninety seconds apart.
CREATE MATERIALIZED VIEW rollouts AS
SELECT window_start, window_end, subject AS service, count(*) AS steps, sum(duration_ms) AS total_ms,
       bool_or(outcome = 'failure') AS failed, count(DISTINCT attributes['step']) AS kinds, max(ts) AS last_step_at
FROM events
WHERE type = 'deploy.step'
GROUP BY session(ts, INTERVAL '90 seconds'), subject;
