-- The team is looked up for each request, and is NULL where there is none.
CREATE VIEW team_requests_5m_by_1m AS
SELECT window_start, window_end, (SELECT team FROM owners WHERE service = labels['service']) AS team, count(*) AS n,
       sum(value) AS total_seconds
FROM windowed('metrics', '1 minute', '5 minutes')
GROUP BY ALL;
