-- Heartbeats by labels that are odd: other alphabets, quotes, blanks, a line break, numbers and booleans instead of
-- text.
CREATE MATERIALIZED VIEW heartbeats_1m AS
SELECT window_start, window_end, labels['service'] AS service, labels['shard'] AS shard, labels['canary'] AS canary,
       labels['it''s'] AS quoted, count(*) AS n, count(*) FILTER (WHERE labels['shard'] = '3') AS of_shard_3,
       min(labels['service']) AS least
FROM metrics
WHERE name = 'heartbeat'
GROUP BY tumble(ts, INTERVAL '1 minute'), labels['service'], labels['shard'], labels['canary'], labels['it''s'];
