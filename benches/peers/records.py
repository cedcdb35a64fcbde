"""The records that are measured with, made by DuckDB, put into a topic; and what the query must answer for them.

The answer is computed from the columns the records were written from, by DuckDB: by none of the engines measured.
"""

import math
import time

import duckdb
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4
NAME = "request_duration_seconds"
LATENESS_S = 10
# How far beyond the last record the closing ones lie: more than the widest window and its lateness.
CLOSING_S = 600
MINUTE_MS = 60_000
# Width and slide of the windows, seconds.
WINDOWS = {"tumble": (60, 60), "hop": (300, 60)}
CHUNK = 100_000

# Times rise evenly and stray back by up to five seconds, so that none is late. Three of four records are of the name
# that the query wants. Values are multiples of 1/64: sums of them are exact in any order, so that answers can be
# compared to the last bit.
MAKE = """
CREATE TABLE records AS
SELECT n::BIGINT AS n,
       (hash(n * 8 + 1) % {services})::INTEGER AS service,
       (hash(n * 8 + 2) % {replicas})::INTEGER AS replica,
       hash(n * 8 + 3) % 4 <> 0 AS wanted,
       (64 + hash(n * 8 + 4) % 25600)::DOUBLE / 64 AS value,
       ({start_ms} + n * {span_ms} // {records} - (hash(n * 8 + 5) % 5000)::BIGINT)::BIGINT AS ts
FROM range({records}) AS r(n)
"""

PAYLOADS = """
SELECT service, '{{"ts":' || ts || ',"name":"' || CASE WHEN wanted THEN '{name}' ELSE 'queue_depth' END
    || '","labels":{{"service":"service-' || service || '","replica":"service-' || service || '-' || replica
    || '"}},"value":' || value || '}}'
FROM records WHERE n >= {low} AND n < {high} ORDER BY n
"""

# Every record is in the windows that start at or before it and end after it.
ANSWER = """
WITH slots AS (
    SELECT ts // {slide_ms} * {slide_ms} - back * {slide_ms} AS window_start, service, value
    FROM records, range({overlap}) AS b(back) WHERE wanted
)
SELECT window_start, 'service-' || service, count(*), sum(value), min(value), max(value), sum(value) / count(*)
FROM slots GROUP BY window_start, service
"""


class Records:
    """A set of records: a topic that holds them, and the answers to the query over them."""

    def __init__(self, count: int, services: int, replicas: int, per_minute: int):
        self.count, self.topic = count, None
        minutes = max(1, math.ceil(count / per_minute))
        # All of it lies in the past, the closing records too; whole hours, so that all windows begin with it.
        hours = math.ceil(minutes / 60) + 3
        self.start_ms = (int(time.time()) // 3600 - hours) * 3_600_000
        self.end_ms = self.start_ms + minutes * MINUTE_MS
        self.duck = duckdb.connect()
        self.duck.execute(MAKE.format(services=services, replicas=replicas, start_ms=self.start_ms,
                                      span_ms=minutes * MINUTE_MS, records=count))

    def answer(self, shape: str) -> dict:
        """Returns {(window_start ms, service): (n, total, least, most, mean)} of all windows."""
        width, slide = WINDOWS[shape]
        rows = self.duck.execute(ANSWER.format(slide_ms=slide * 1000, overlap=width // slide)).fetchall()
        return {(row[0], row[1]): tuple(row[2:]) for row in rows}

    def preload(self, brokers: str, topic: str, compression: str):
        """Puts the records into a topic of their own, keyed by service, and a record into every partition that closes
        the last window. Returns once all of them are there, each once."""
        self.topic = topic
        make_topics(brokers, [topic], PARTITIONS)
        producer = Producer({
            "bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 50, "batch.size": 262_144,
            "compression.type": compression, "queue.buffering.max.messages": 2 * CHUNK,
            "log_level": 3,
        })
        failed = []
        told = lambda error, _: failed.append(error) if error else None
        for low in range(0, self.count, CHUNK):
            rows = self.duck.execute(PAYLOADS.format(name=NAME, low=low, high=low + CHUNK)).fetchall()
            for service, payload in rows:
                producer.produce(topic, payload, key=f"service-{service}", partition=service % PARTITIONS)
            producer.flush()
        for partition in range(PARTITIONS):
            closing = (f'{{"ts":{self.end_ms + CLOSING_S * 1000},"name":"{NAME}",'
                       '"labels":{"service":"closing"},"value":1}')
            producer.produce(topic, closing, key="closing", partition=partition, on_delivery=told)
        producer.flush()
        found = held(brokers, topic)
        if failed or found != self.count + PARTITIONS:
            raise SystemExit(f"expected {self.count + PARTITIONS} records in {topic}, found {found} {failed}")


def make_topics(brokers: str, topics: list, partitions: int):
    """Makes topics whose records stay, however old their event time is."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 3})
    wanted = [NewTopic(t, partitions, 1, config={"retention.ms": "-1"}) for t in topics]
    for done in admin.create_topics(wanted).values():
        done.result()


def delete_topics(brokers: str, prefix: str):
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 3})
    topics = [t for t in admin.list_topics(timeout=10).topics if t.startswith(prefix)]
    for done in (admin.delete_topics(topics) if topics else {}).values():
        done.result()


def held(brokers: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "peers-count"})
    marks = [consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10) for p in range(PARTITIONS)]
    consumer.close()
    return sum(high - low for low, high in marks)
