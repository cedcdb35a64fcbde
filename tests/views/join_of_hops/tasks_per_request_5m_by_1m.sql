-- Tasks for each request: two views of overlapping windows, joined window by window.
CREATE MATERIALIZED VIEW tasks_per_request_5m_by_1m AS
SELECT a.window_start, a.window_end, a.service, a.n, t.tasks, CAST(t.tasks AS DOUBLE) / a.n AS per_request
FROM asked_5m_by_1m AS a JOIN tasks_5m_by_1m AS t ON a.window_end = t.window_end AND a.service = t.service;
