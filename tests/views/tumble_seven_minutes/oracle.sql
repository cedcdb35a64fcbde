-- The start of a window by whole microseconds since 1970.
CREATE VIEW ended_7m AS
WITH rows AS (SELECT *, epoch_us(ts) - epoch_us(ts) % (7 * 60 * 1000000) AS begun FROM events)
SELECT make_timestamptz(begun) AS window_start, make_timestamptz(begun + 7 * 60 * 1000000) AS window_end,
       subject AS workflow, count(*) AS n, sum(duration_ms) AS total_ms
FROM rows
GROUP BY ALL;
