-- Times in which jobs ticked, all of them together: a pause of a minute to the microsecond does not end one, a longer
-- one does.
CREATE MATERIALIZED VIEW ticking AS
SELECT window_start, window_end, count(*) AS ticks, count(DISTINCT subject) AS jobs
FROM events
GROUP BY session(ts, INTERVAL '1 minute');
