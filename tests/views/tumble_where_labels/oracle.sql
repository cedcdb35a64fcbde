-- Other regions than eu are us and ap; other services than billing, with requests, are the three that are named.
CREATE VIEW slow_abroad_1m AS
SELECT window_start, window_end, labels['region'] AS region, count(*) AS n, avg(value) AS mean_seconds
FROM windowed('metrics', '1 minute', '1 minute')
WHERE name = 'request_duration_seconds' AND value > 0.1 AND list_contains(['us', 'ap'], labels['region'])
  AND labels['status'] != '404' AND list_contains(['checkout', 'search', 'cart'], labels['service'])
GROUP BY ALL;
