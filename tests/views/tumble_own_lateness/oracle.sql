-- One meaning, three latenesses.
CREATE VIEW patient_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM windowed('metrics', '1 minute', '1 minute', lateness := '60 seconds')
GROUP BY ALL;

CREATE VIEW usual_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM windowed('metrics', '1 minute', '1 minute', lateness := '10 seconds')
GROUP BY ALL;

CREATE VIEW hasty_1m AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total_seconds
FROM windowed('metrics', '1 minute', '1 minute', lateness := '2 seconds')
GROUP BY ALL;
