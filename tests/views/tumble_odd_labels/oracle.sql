-- A number or a boolean among the labels is read as its text: shard 3 and shard "3" are one.
CREATE VIEW heartbeats_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['shard'] AS shard, labels['canary'] AS canary,
       labels['it''s'] AS quoted, count(*) AS n, how_many(labels['shard'] = '3') AS of_shard_3,
       any_value(labels['service']) AS least
FROM windowed('metrics', '1 minute', '1 minute')
GROUP BY ALL;
