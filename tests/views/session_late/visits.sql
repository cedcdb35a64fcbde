-- Visits, per user. A page view that is held up counts where it joins a visit that has not ended, and is dropped where
-- its own visit would have ended before the watermark.
CREATE MATERIALIZED VIEW visits AS
SELECT window_start, window_end, subject AS who, count(*) AS views, sum(duration_ms) AS total_ms, min(id) AS least_id
FROM events
WHERE type = 'page.viewed'
GROUP BY session(ts, INTERVAL '30 seconds'), subject;
