#!/usr/bin/env python3
"""Shows that the checks of the end-to-end test pass where all is right and fail on everything that is not.

Needs no Bellwether: the store is made of the truth itself, and then spoilt one way at a time; so are the dead letters and
the alerts where a Kafka is there ($BW_KAFKA), and without one those cases are named as not run.
"""

import os
import sys
from array import array
from datetime import datetime, timezone
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

import alerts
import checks
import e2e
import truth

NOW_S = 1_800_000_000
THROUGH_US = (NOW_S - e2e.LATENESS_S_MAX) * 1_000_000
RECOMPUTED = sorted((Path(__file__).parent / "recompute").glob("*.sql"))


class Quiet(checks.Verdicts):
    def add(self, name, good, detail):
        self.rows.append((name, bool(good), detail))


def made_truth():
    feed = e2e.Feed.__new__(e2e.Feed)
    feed.names, feed.labels, feed.ts, feed.values, feed.events = [], [], array("q"), array("d"), []
    ways = set()
    for record in truth.Truth(7, 20_000, 240, NOW_S):
        for sample in record.samples:
            feed.names.append(sample.name)
            feed.labels.append(sample.labels)
            feed.ts.append(sample.ts)
            feed.values.append(sample.value)
        feed.events.extend(record.events)
        if record.broken:
            assert not record.samples and not record.events, "a broken record must call for no row"
            ways.add(record.broken)
    assert ways == set(truth.BROKEN), f"expected every way of breaking a record, got {sorted(ways)}"
    return feed.tables()


def store_of(tables):
    """Returns a database with the truth and a store that is exactly right."""
    db = checks.connect()
    # Rows of the store are named by their place below.
    db.execute("SET preserve_insertion_order = true")
    checks.load_truth(db, *tables)
    db.execute("""CREATE TABLE series AS SELECT row_number() OVER () AS series_id, name, labels
                  FROM (SELECT DISTINCT name, labels FROM truth.metrics)""")
    db.execute("""CREATE TABLE samples AS SELECT series_id, ts AT TIME ZONE 'UTC' AS ts, value, ts::DATE AS day
                  FROM truth.metrics JOIN series USING (name, labels)""")
    db.execute("CREATE TABLE events AS SELECT *, ts::DATE AS day FROM truth.events")
    for path in RECOMPUTED:
        checks.recompute(db, path, THROUGH_US)
        columns = [row[0] for row in db.execute(f"DESCRIBE recomputed.{path.stem}").fetchall()]
        # A histogram's answer: anything within its bound.
        stored = [f"(2 * {c} + {c[:-4]}__hi) / 3 AS {c[:-4]}" if c.endswith("__lo") else c for c in columns if not c.endswith("__hi")]
        db.execute(f"CREATE TABLE {path.stem} AS SELECT {', '.join(stored)} FROM recomputed.{path.stem}")
    return db


def failing(db) -> set:
    verdicts = Quiet()
    checks.check_samples(db, verdicts)
    checks.check_events(db, verdicts)
    for path in RECOMPUTED:
        checks.check_view(db, path.stem, path, verdicts)
    return {name for name, good, _ in verdicts.rows if not good}


def spoilt():
    """Returns (statement that spoils the store, the check that must notice)."""
    samples, events = "samples are exactly the good ones", "events are exactly the good ones"
    view = "view {} equals its recomputation".format
    return [
        ("INSERT INTO samples SELECT * FROM samples WHERE rowid = 9", samples),
        ("DELETE FROM samples WHERE rowid = 9", samples),
        ("UPDATE samples SET value = value + 1e-12 WHERE rowid = 9", samples),
        ("UPDATE samples SET ts = ts + INTERVAL '1 microsecond' WHERE rowid = 9", samples),
        ("DELETE FROM series WHERE rowid = 3", samples),
        ("INSERT INTO series SELECT series_id + 100000, name, labels FROM series WHERE rowid = 3", "every series has one id and one row"),
        ("UPDATE samples SET day = day + 1 WHERE rowid = 9", "samples lie in the partition of their day"),
        ("INSERT INTO events SELECT * FROM events WHERE rowid = 9", events),
        ("DELETE FROM events WHERE rowid = 9", events),
        ("UPDATE events SET outcome = 'lost' WHERE rowid = 9", events),
        ("UPDATE events SET data = '{\"attempt\": 99}' WHERE rowid = 9", "the data of events is kept"),
        *[(f"DELETE FROM {p.stem} WHERE rowid = 2", view(p.stem)) for p in RECOMPUTED],
        *[(f"INSERT INTO {p.stem} SELECT * FROM {p.stem} WHERE rowid = 2", view(p.stem)) for p in RECOMPUTED],
        *[(f"UPDATE {p.stem} SET window_start = window_start + INTERVAL '1 second' WHERE rowid = 2", view(p.stem)) for p in RECOMPUTED],
        ("UPDATE service_latency_1m SET p99 = p99 * 1.5 WHERE rowid = 2", view("service_latency_1m")),
        ("UPDATE service_latency_1m SET p99 = NULL WHERE rowid = 2", view("service_latency_1m")),
        # Groups of at most 128 values are exact; beyond, one in 256 is the bound.
        ("UPDATE replica_latency_30s SET p95 = p95 * (1 + 1e-8) WHERE rowid = 2 AND n <= 128", view("replica_latency_30s")),
        ("UPDATE service_latency_1m SET p50 = p50 * 1.009", view("service_latency_1m")),
        ("UPDATE queue_depth_1m SET depth_last = depth WHERE rowid = 2", view("queue_depth_1m")),
        ("UPDATE resource_use_30s SET used_ratio = used_ratio * (1 + 1e-8) WHERE rowid = 2", view("resource_use_30s")),
        ("UPDATE service_errors_1m SET n = n + 1 WHERE rowid = 2", view("service_errors_1m")),
        ("ALTER TABLE service_errors_1m DROP COLUMN errors", view("service_errors_1m")),
    ]


def letters() -> tuple:
    """Returns (the broken records as the end-to-end test keeps them, the dead letters that are right for them)."""
    broken, right = [], []
    for offset, record in enumerate(truth.Truth(7, 600, 60, NOW_S)):
        if not record.broken:
            continue
        at = (record.topic, record.partition, offset)
        broken.append((*at, record.key, record.value, record.headers, record.broken))
        reason = sorted(truth.BROKEN[record.broken])[0]
        right.append({"at": at, "key": record.key, "value": record.value, "headers": record.headers, "reason": reason})
    return broken, right


def publish(producer, prefix: str, letter: dict):
    topic, partition, offset = letter["at"]
    ours = {"topic": f"{prefix}.{topic}", "partition": str(partition), "offset": str(offset),
            "exception.class.name": letter["reason"], "exception.message": "expected one thing, got another"}
    headers = [*letter["headers"], *((f"__connect.errors.{name}", value.encode()) for name, value in ours.items())]
    producer.produce(f"{prefix}.{topic}.dlq", letter["value"], letter["key"], headers=headers)


def spoilt_letters():
    """Returns (name, what it makes of the right letters, whether to abort a copy of them, the check that must notice)."""
    exactly, kept = "dead letters are exactly the broken records, each once", "dead letters keep key, value and headers"
    first = lambda **changes: lambda right: [right[0] | changes, *right[1:]]
    return [
        ("right", lambda right: right, False, None),
        ("aborted-copies", lambda right: right, True, None),
        ("one-lost", lambda right: right[1:], False, exactly),
        ("one-twice", lambda right: [*right, right[0]], False, exactly),
        ("one-too-many", lambda right: [*right, right[0] | {"at": (*right[0]["at"][:2], 99_999)}], False, exactly),
        ("changed-value", first(value=b"changed"), False, kept),
        ("lost-header", first(headers=[("another", b"1")]), False, kept),
        ("wrong-reason", first(reason="cardinality"), False, "dead letters carry the right reason"),
    ]


def kafka_cases(bootstrap: str) -> tuple:
    """Returns (how many cases ran, what went wrong)."""
    broken, right = letters()
    schema = e2e.ROOT / "schemas" / "records" / "dead_letter.schema.json"
    admin, failed, cases = AdminClient({"bootstrap.servers": bootstrap}), [], spoilt_letters()
    for name, spoil, abort, notices in cases:
        prefix = f"checks-{os.getpid()}-{name}"
        made = admin.create_topics([NewTopic(f"{prefix}.{t}.dlq", 2, 1, config={"max.message.bytes": "8000000"}) for t in truth.FORMATS])
        for future in made.values():
            future.result(30)
        producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": prefix, "message.max.bytes": 8_000_000, "log_level": 3})
        producer.init_transactions(60)
        producer.begin_transaction()
        for letter in spoil(right):
            publish(producer, prefix, letter)
        producer.commit_transaction(60)
        if abort:
            producer.begin_transaction()
            for letter in right:
                publish(producer, prefix, letter)
            producer.flush(60)
            producer.abort_transaction(60)
        verdicts = Quiet()
        checks.check_dead_letters(bootstrap, prefix, broken, schema, verdicts)
        wrong = {check: detail for check, good, detail in verdicts.rows if not good}
        if notices is None and wrong:
            failed.append(f"dead letters that are right ({name}) fail {wrong}")
        if notices is not None and notices not in wrong:
            failed.append(f"not noticed by {notices!r}: {name}")
        admin.delete_topics([f"{prefix}.{t}.dlq" for t in truth.FORMATS])
    return len(cases), failed


def alert_cases(db) -> tuple:
    """Alerts that are those of the model, and alerts that are not; faults that are found, and faults that are not."""
    must, may = alerts.expected(db, e2e.ROOT, {p.stem: f"recomputed.{p.stem}" for p in RECOMPUTED}, THROUGH_US)
    stamp = lambda micros: datetime.fromtimestamp(micros / 1e6, timezone.utc).isoformat()
    right = [{"rule": rule, "labels": dict(labels), "state": state, "at": stamp(at), "active_since": stamp(since)}
             for rule, labels, state, at, since in must.elements()]
    early = right[0] | {"at": stamp(next(iter(must.elements()))[3] - alerts.TICK_US)}
    of_model = [(right, True), (right[1:], False), ([*right, right[0]], False), ([early, *right[1:]], False), ([], False)]
    failed = []
    for said, good in of_model:
        verdicts = Quiet()
        alerts.check(said, must, may, verdicts)
        if (verdicts.failed() == 0) != good:
            failed.append(f"alerts against the model: expected {good}, got {verdicts.rows}")
    found = []
    for rule, labels, _, _ in truth.INCIDENTS.values():
        found += [{"rule": rule, "labels": labels, "state": state} for state in ("pending", "firing", "resolved")]
    false = {"rule": "error_rate_high", "labels": {"service": "login"}, "state": "firing"}
    of_faults = [(found, set()), ([*found, false], {"no rule fires without a fault"}), (found[:-3], {"workflow"}), (found[:-1], {"workflow"})]
    for said, notices in of_faults:
        verdicts = Quiet()
        alerts.check_faults(said, None, verdicts)
        wrong = [name for name, good, _ in verdicts.rows if not good]
        if len(wrong) != len(notices) or not all(any(n in name for name in wrong) for n in notices):
            failed.append(f"alerts: expected {notices} to be noticed, got {wrong}")
    return len(of_model) + len(of_faults), failed


def main() -> int:
    tables = made_truth()
    db = store_of(tables)
    failed = []
    if wrong := failing(db):
        failed.append(f"a store that is right fails {sorted(wrong)}")
    cases = spoilt()
    for statement, check in cases:
        db.execute("BEGIN")
        db.execute(statement)
        if check not in failing(db):
            failed.append(f"not noticed by {check!r}: {statement}")
        db.execute("ROLLBACK")
    ran = len(cases) + 1
    more = [alert_cases(db)]
    if bootstrap := os.environ.get("BW_KAFKA"):
        more.append(kafka_cases(bootstrap))
    else:
        print("not run: the cases of dead letters, for want of $BW_KAFKA")
    for count, wrong in more:
        ran += count
        failed += wrong
    for text in failed:
        print(f"FAIL {text}")
    print(f"checks: {ran - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
