-- What share of all requests of the minute was each service's, and what place it takes; equals share a place.
CREATE MATERIALIZED VIEW share_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
       sum(count(*)) OVER (PARTITION BY window_end) AS n_all,
       CAST(count(*) AS DOUBLE) / sum(count(*)) OVER (PARTITION BY window_end) AS share,
       rank() OVER (PARTITION BY window_end ORDER BY count(*) DESC) AS place
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
