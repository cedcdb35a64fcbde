-- Visits, per user. A page view that comes when its visit has ended, and is not yet late, begins a visit of its own:
-- what has been told is not told anew.
CREATE MATERIALIZED VIEW visits AS
SELECT window_start, window_end, subject AS who, count(*) AS views, sum(duration_ms) AS total_ms, min(id) AS least_id
FROM events
WHERE type = 'page.viewed'
GROUP BY session(ts, INTERVAL '30 seconds'), subject;
