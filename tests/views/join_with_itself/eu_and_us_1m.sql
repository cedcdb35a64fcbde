-- The regions of a service side by side: a view joined with itself.
CREATE MATERIALIZED VIEW eu_and_us_1m AS
SELECT eu.window_start, eu.window_end, eu.service, eu.n AS n_eu, us.n AS n_us, eu.n - us.n AS apart
FROM by_region_1m AS eu JOIN by_region_1m AS us ON eu.window_end = us.window_end AND eu.service = us.service
WHERE eu.region = 'eu' AND us.region = 'us';
