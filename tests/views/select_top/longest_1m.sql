-- The two services with the longest requests of each minute, out of a view: the limit holds in each window.
CREATE MATERIALIZED VIEW longest_1m AS
SELECT window_start, window_end, service, longest
FROM requests_1m
WHERE n > 4
ORDER BY longest DESC
LIMIT 2;
