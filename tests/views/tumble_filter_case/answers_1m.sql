-- How requests were answered, per service: counted by FILTER and by CASE, which must agree on what they both say.
CREATE MATERIALIZED VIEW answers_1m AS
SELECT window_start, window_end, labels['service'] AS service,
       count(*) FILTER (WHERE labels['status'] >= '500') AS failed,
       sum(CASE WHEN labels['status'] >= '500' THEN 1 ELSE 0 END) AS failed_by_case,
       count(CASE WHEN labels['region'] = 'us' AND value > 0.1 THEN 1 END) AS slow_in_us,
       avg(value) FILTER (WHERE labels['status'] = '200') AS mean_of_good,
       max(value) FILTER (WHERE labels['status'] = '404') AS longest_not_found,
       sum(CASE labels['region'] WHEN 'eu' THEN value WHEN 'us' THEN -value END) AS eu_less_us
FROM metrics
WHERE name = 'request_duration_seconds'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'];
