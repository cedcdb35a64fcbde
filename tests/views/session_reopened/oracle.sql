-- Row by row, as they came.
CREATE VIEW viewed AS SELECT *, subject AS key FROM watched('events');

CREATE VIEW visits AS
SELECT min(ts) AS window_start, max(ts) + INTERVAL '30 seconds' AS window_end, key AS who, count(*) AS views,
       sum(duration_ms) AS total_ms, min(id) AS least_id
FROM walked('viewed', '30 seconds')
GROUP BY key, session;
