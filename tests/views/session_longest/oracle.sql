-- step = 30 s * ceil(10 min / 2 / 30 s) = 5 minutes. The first cut is the first multiple of it that is at least as much
-- after the session's start. A piece ends as a session does, a gap after its last row, also where it is cut off.
CREATE VIEW readings AS SELECT *, labels['node'] AS key FROM metrics;

CREATE VIEW busy AS
WITH natural_sessions AS (SELECT *, min(ts) OVER own AS began, max(ts) OVER own AS ended
                          FROM paused('readings', '30 seconds') WINDOW own AS (PARTITION BY key, session)),
     -- The multiple of five minutes at or after `began` and five minutes more.
     firsts AS (SELECT DISTINCT key, session, ended,
                       time_bucket(INTERVAL '5 minutes', began + INTERVAL '9 minutes 59.999999 seconds') AS first_cut
                FROM natural_sessions),
     cuts AS (SELECT key, session, unnest(generate_series(first_cut, ended, INTERVAL '5 minutes')) AS cut FROM firsts),
     pieces AS (SELECT rows.*,
                       (SELECT max(cut) FROM cuts
                        WHERE cuts.key = rows.key AND cuts.session = rows.session AND cut <= ts) AS cut_before,
                       (SELECT min(cut) FROM cuts
                        WHERE cuts.key = rows.key AND cuts.session = rows.session AND cut > ts) AS cut_after
                FROM natural_sessions AS rows)
SELECT min(ts) AS window_start, max(ts) + INTERVAL '30 seconds' AS window_end, key AS node,
       count(*) AS n, sum(value) AS work, max(ts) AS last_at
FROM pieces
GROUP BY key, session, cut_before, cut_after;
