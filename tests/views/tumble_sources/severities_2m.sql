-- What was logged, by source and severity, of which some events have none; and how many came with data of their own.
CREATE MATERIALIZED VIEW severities_2m AS
SELECT window_start, window_end, source, severity, count(*) AS n, count(data) AS with_data,
       count(outcome) AS with_outcome,
       min(subject) AS least_subject, max(id) AS greatest_id, sum(duration_ms) AS total_ms
FROM events
GROUP BY tumble(ts, INTERVAL '2 minutes'), source, severity;
