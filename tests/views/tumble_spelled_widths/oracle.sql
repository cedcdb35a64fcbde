-- However it is spelled, it is ninety seconds.
CREATE VIEW requests_90s_a AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
FROM windowed('metrics', '90 seconds', '90 seconds')
GROUP BY ALL;

CREATE VIEW requests_90s_b AS FROM requests_90s_a;

CREATE VIEW requests_90s_c AS FROM requests_90s_a;
