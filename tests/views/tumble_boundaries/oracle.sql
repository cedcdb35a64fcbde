-- Windows are half-open. A row is late where its window ends at the watermark, and in time where it ends a microsecond
-- after.
CREATE VIEW ticks_1m AS
WITH minutes AS (SELECT *, epoch_us(ts) // 60000000 AS minute FROM watched('metrics'))
SELECT make_timestamptz(minute * 60000000) AS window_start, make_timestamptz((minute + 1) * 60000000) AS window_end,
       labels['probe'] AS probe, count(*) AS n, sum(value) AS total, min(ts) AS first_at, max(ts) AS last_at
FROM minutes
WHERE isinf(watermark) OR (minute + 1) * 60000000 > epoch_us(watermark)
GROUP BY ALL;
