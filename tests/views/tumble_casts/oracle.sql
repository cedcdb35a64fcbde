-- Whole numbers are told by their digits; rates by a list of what is ever said.
CREATE VIEW loads_2m AS
WITH rows AS (SELECT *, nullif(regexp_extract(attributes['rows'], '^[0-9]+$'), '')::BIGINT AS given,
                     attributes['batches']::BIGINT AS batches,
                     MAP {'0.25': 0.25::DOUBLE, '1e-3': 0.001, '12': 12}[attributes['rate']] AS rate
              FROM windowed('events', '2 minutes', '2 minutes'))
SELECT window_start, window_end, subject AS task, count(*) AS n, count(given) AS with_rows, sum(given) AS row_total,
       max(if(batches > 0, given // batches, NULL)) AS largest_batch, avg(rate) AS mean_rate,
       how_many(given > 1000) AS large
FROM rows
WHERE batches < 10
GROUP BY ALL;
