-- The windowed query in Flink SQL. `run.py` fills in what stands in braces. Every statement ends with a semicolon,
-- and no comment holds one.
CREATE TEMPORARY TABLE metrics (
    name STRING,
    labels ROW<service STRING>,
    `value` DOUBLE,
    ts BIGINT,
    event_time AS TO_TIMESTAMP_LTZ(ts, 3),
    WATERMARK FOR event_time AS event_time - INTERVAL '{lateness_s}' SECOND
) WITH (
    'connector' = 'kafka',
    'topic' = '{input}',
    'properties.bootstrap.servers' = '{brokers}',
    'properties.group.id' = '{group}',
    'properties.max.poll.records' = '20000',
    'properties.check.crcs' = 'false',
    'properties.max.partition.fetch.bytes' = '4194304',
    'scan.startup.mode' = 'earliest-offset',
    'format' = 'json'
);

CREATE TEMPORARY TABLE results (
    window_start TIMESTAMP(3),
    window_end TIMESTAMP(3),
    service STRING,
    n BIGINT,
    total DOUBLE,
    least DOUBLE,
    most DOUBLE,
    mean DOUBLE
) WITH (
    'connector' = 'kafka',
    'topic' = '{output}',
    'properties.bootstrap.servers' = '{brokers}',
    'properties.transaction.timeout.ms' = '600000',
    'key.format' = 'raw',
    'key.fields' = 'service',
    'value.format' = 'json',
    'value.json.timestamp-format.standard' = 'ISO-8601',
    'sink.delivery-guarantee' = '{guarantee}',
    'sink.transactional-id-prefix' = '{group}'
);

-- Filtered before the window is assigned.
CREATE TEMPORARY VIEW wanted AS
SELECT event_time, labels.service AS service, `value` FROM metrics WHERE name = '{name}';

INSERT INTO results
SELECT window_start, window_end, service, COUNT(*), SUM(`value`), MIN(`value`), MAX(`value`), AVG(`value`)
FROM TABLE({window})
GROUP BY window_start, window_end, service;
