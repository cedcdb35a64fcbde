-- Notes hold no roll-out together: only steps count.
CREATE VIEW steps AS SELECT *, subject AS key FROM events WHERE type = 'deploy.step';

CREATE VIEW rollouts AS
SELECT min(ts) AS window_start, max(ts) + INTERVAL '90 seconds' AS window_end, key AS service, count(*) AS steps,
       sum(duration_ms) AS total_ms, how_many(outcome = 'failure') > 0 AS failed,
       count(DISTINCT attributes['step']) AS kinds, max(ts) AS last_step_at
FROM paused('steps', '90 seconds')
GROUP BY key, session;
