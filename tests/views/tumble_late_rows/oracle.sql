-- A row is late where the end of its minute is not after the greatest time that came before it, less ten seconds.
-- Told without `windowed`, so that the two ways to say it check each other.
CREATE VIEW requests_1m AS
WITH minutes AS (SELECT *, date_trunc('minute', ts) AS minute FROM metrics),
     judged AS (SELECT *, NOT EXISTS (FROM metrics AS earlier WHERE earlier.arrival < minutes.arrival
                                      AND earlier.ts >= minute + INTERVAL '1 minute 10 seconds') AS in_time
                FROM minutes)
SELECT minute AS window_start, minute + INTERVAL '1 minute' AS window_end, labels['service'] AS service,
       count(*) AS n, sum(value) AS total_seconds
FROM judged
WHERE in_time
GROUP BY ALL;
