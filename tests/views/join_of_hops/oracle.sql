-- Windows are equal where both of their ends are.
CREATE VIEW asked_5m_by_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n
FROM windowed('metrics', '1 minute', '5 minutes')
GROUP BY ALL;

CREATE VIEW tasks_5m_by_1m AS
SELECT window_start, window_end, subject AS service, count(*) AS tasks, sum(duration_ms) AS total_ms
FROM windowed('events', '1 minute', '5 minutes')
GROUP BY ALL;

CREATE VIEW tasks_per_request_5m_by_1m AS
SELECT window_start, window_end, service, n, tasks, ratio(tasks, n) AS per_request
FROM asked_5m_by_1m JOIN tasks_5m_by_1m USING (window_start, window_end, service);
