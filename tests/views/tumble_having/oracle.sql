-- Counted first, then chosen by the counts.
CREATE VIEW failing_1m AS
WITH counted AS (SELECT window_start, window_end, labels['service'] AS service, count(*) AS n,
                        how_many(labels['status'] != '200') AS failed, max(value) AS longest
                 FROM windowed('metrics', '1 minute', '1 minute') GROUP BY ALL)
SELECT window_start, window_end, service, failed, longest
FROM counted
WHERE n >= 5 AND failed >= 2;
