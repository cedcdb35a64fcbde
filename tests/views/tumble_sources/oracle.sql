-- No event has an outcome.
CREATE VIEW severities_2m AS
SELECT window_start, window_end, source, severity, count(*) AS n, how_many(data IS NOT NULL) AS with_data,
       0 AS with_outcome, if(how_many(subject = 'api') > 0, 'api', 'worker') AS least_subject, max(id) AS greatest_id,
       sum(duration_ms) AS total_ms
FROM windowed('events', '2 minutes', '2 minutes')
GROUP BY ALL;
