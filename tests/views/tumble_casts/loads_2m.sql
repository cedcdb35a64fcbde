-- What loading tasks report of themselves, as text. What is not a number is NULL, and so is a quotient by no batches.
CREATE MATERIALIZED VIEW loads_2m AS
SELECT window_start, window_end, subject AS task, count(*) AS n,
       count(CAST(attributes['rows'] AS BIGINT)) AS with_rows, sum(CAST(attributes['rows'] AS BIGINT)) AS row_total,
       max(CAST(attributes['rows'] AS BIGINT) / CAST(attributes['batches'] AS BIGINT)) AS largest_batch,
       avg(CAST(attributes['rate'] AS DOUBLE)) AS mean_rate,
       count(*) FILTER (WHERE CAST(attributes['rows'] AS BIGINT) > 1000) AS large
FROM events
WHERE type = 'task.completed' AND CAST(attributes['batches'] AS BIGINT) < 10
GROUP BY tumble(ts, INTERVAL '2 minutes'), subject;
