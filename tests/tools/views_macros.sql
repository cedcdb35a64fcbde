-- What the oracles of the golden views (tests/views/*/oracle.sql) have in common, in DuckDB's SQL: which rows count in
-- which window or session, and the functions that Bellwether adds to SQL, each by its definition.

-- The rows of a stream, each with the watermark as it stood before the row came: the greatest time so far, less the
-- lateness.
CREATE MACRO watched(stream, lateness := '10 seconds') AS TABLE
    SELECT *, coalesce(max(ts) OVER (ORDER BY arrival ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                       - lateness::INTERVAL, '-infinity') AS watermark
    FROM query_table(stream);

-- One row for each row of a stream and each window it counts in: windows that start at every multiple of the slide
-- since 1970, hold [window_start, window_end), and had not closed when the row came.
CREATE MACRO windowed(stream, slide, width, lateness := '10 seconds') AS TABLE
    WITH span AS (SELECT time_bucket(slide::INTERVAL, min(ts) - width::INTERVAL, make_timestamptz(0)) AS least,
                         max(ts) AS greatest
                  FROM query_table(stream)),
         starts AS (SELECT unnest(generate_series(least, greatest, slide::INTERVAL)) AS window_start FROM span)
    SELECT window_start, window_start + width::INTERVAL AS window_end, seen.*
    FROM starts JOIN watched(stream, lateness := lateness) AS seen
        ON ts >= window_start AND ts < window_start + width::INTERVAL AND window_start + width::INTERVAL > watermark;

-- The rows of a stream that has a column `key`, each with the number of its session among those of its key: a new one
-- begins after a pause longer than the gap. Right where no row is late, as then all that belongs together meets.
CREATE MACRO paused(stream, gap) AS TABLE
    WITH marked AS (SELECT *, ts - lag(ts) OVER (PARTITION BY key ORDER BY ts) > gap::INTERVAL AS begins
                    FROM query_table(stream))
    SELECT * EXCLUDE (begins), count(*) FILTER (WHERE begins) OVER (PARTITION BY key ORDER BY ts) AS session
    FROM marked;

-- The same where rows may be late, of a stream with columns `key` and `watermark`: one row after the other, as they
-- came. A session is open until the watermark has passed its end. A row joins all open sessions of its key that are no
-- further from it than the gap, and makes one of them; where there is none it begins one, unless it is so old that its
-- own would have ended before the watermark: then it is late, and left out. So is a row within the gap of a session that
-- has ended: what was said of that session stays true, and no later row makes one of it and another.
CREATE MACRO walked(stream, gap) AS TABLE
    WITH RECURSIVE
    queue AS (SELECT *, row_number() OVER (ORDER BY arrival) AS turn FROM query_table(stream)),
    walk AS (
        SELECT 0::BIGINT AS turn,
               []::STRUCT(key VARCHAR, first TIMESTAMPTZ, last TIMESTAMPTZ, arrivals BIGINT[])[] AS open,
               []::STRUCT(key VARCHAR, first TIMESTAMPTZ, last TIMESTAMPTZ, arrivals BIGINT[])[] AS ended
        UNION ALL
        SELECT turn,
               CASE WHEN len(shut) > 0 OR len(near) = 0 AND ts + gap::INTERVAL < watermark THEN open
                    ELSE list_append(far, {'key': key, 'first': least(ts, list_min([s.first for s in near])),
                                           'last': greatest(ts, list_max([s.last for s in near])),
                                           'arrivals': list_append(flatten([s.arrivals for s in near]), arrival)}) END,
               ended
        FROM (SELECT *, list_filter(ended, lambda s: s.key IS NOT DISTINCT FROM key AND ts >= s.first - gap::INTERVAL
                                                     AND ts <= s.last + gap::INTERVAL) AS shut,
                     list_filter(open, lambda s: s.key IS NOT DISTINCT FROM key AND ts >= s.first - gap::INTERVAL
                                                    AND ts <= s.last + gap::INTERVAL) AS near,
                     list_filter(open, lambda s: s.key IS DISTINCT FROM key OR ts < s.first - gap::INTERVAL
                                                 OR ts > s.last + gap::INTERVAL) AS far
              FROM (SELECT queue.*, list_filter(open, lambda s: s.last + gap::INTERVAL >= watermark) AS open,
                           ended || list_filter(open, lambda s: s.last + gap::INTERVAL < watermark) AS ended
                    FROM walk JOIN queue ON queue.turn = walk.turn + 1))),
    sessions AS (SELECT unnest(open || ended) AS s FROM (FROM walk ORDER BY turn DESC LIMIT 1)),
    members AS (SELECT row_number() OVER () AS session, unnest(s.arrivals) AS arrival FROM sessions)
    SELECT queue.*, session FROM members JOIN queue USING (arrival);

-- Linear between the two neighbours of a broken rank.
CREATE MACRO hdr_quantile(v, q) AS quantile_cont(v, q);

-- Least-squares slope per second; NULL with fewer than two times. Seconds since the row's window began, not since 1970,
-- which doubles hold to 0.2 µs only.
CREATE MACRO seconds_into(ts, window_start) AS (epoch_us(ts) - epoch_us(window_start)) / 1e6;
CREATE MACRO slope(v, elapsed) AS
    CASE WHEN count(DISTINCT elapsed) FILTER (WHERE v IS NOT NULL) >= 2 THEN regr_slope(v, elapsed) END;

-- The value at the least and at the greatest time; of several at one time the greatest value.
CREATE MACRO first_by_time(v, ts) AS arg_max(v, (-epoch_us(ts), v)) FILTER (WHERE v IS NOT NULL);
CREATE MACRO last_by_time(v, ts) AS arg_max(v, (epoch_us(ts), v)) FILTER (WHERE v IS NOT NULL);

-- Counts the rows of which a condition is true. (DuckDB's own count_if is NULL where it is NULL for all of them.)
CREATE MACRO how_many(condition) AS count(CASE WHEN condition THEN 1 END);

-- A quotient that is NULL where it is divided by zero, as in a view.
CREATE MACRO ratio(above, below) AS above::DOUBLE / nullif(below::DOUBLE, 0);
