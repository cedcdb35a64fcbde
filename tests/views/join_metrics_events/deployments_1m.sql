-- Deployments per service, a minute at a time.
CREATE MATERIALIZED VIEW deployments_1m AS
SELECT window_start, window_end, subject AS service, count(*) AS deployments, max(attributes['version']) AS version
FROM events
WHERE type = 'service.deployed' AND outcome = 'success'
GROUP BY tumble(ts, INTERVAL '1 minute'), subject;
