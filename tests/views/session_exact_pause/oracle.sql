-- One key for all: jobs tick together.
CREATE VIEW ticks AS SELECT *, 'all' AS key FROM events;

CREATE VIEW ticking AS
SELECT min(ts) AS window_start, max(ts) + INTERVAL '1 minute' AS window_end, count(*) AS ticks,
       count(DISTINCT subject) AS jobs
FROM paused('ticks', '60 seconds')
GROUP BY session;
