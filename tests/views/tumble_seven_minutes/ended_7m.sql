-- What ended in seven minutes, which divide no hour: windows begin at multiples of their width since 1970.
CREATE MATERIALIZED VIEW ended_7m AS
SELECT window_start, window_end, subject AS workflow, count(*) AS n, sum(duration_ms) AS total_ms
FROM events
GROUP BY tumble(ts, INTERVAL '7 minutes'), subject;
