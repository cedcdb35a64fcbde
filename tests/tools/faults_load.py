"""Faults of load: a broker that is away, records that are too much, series without end, and clocks that are wrong."""

import json
import re
import shutil
import time
from collections import Counter

from confluent_kafka import Producer

import checks
import e2e
import proxy
import stage as stages
import truth

MINUTE_US = 60_000_000
# What the program's limits are left at: the largest payload, and how far ahead a record's time may be.
PAYLOAD_BYTES_MAX = 4 << 20


# ---- the broker is away


def fault_18_broker_down_under_load(stage):
    """The broker dies under load and stays away; later it only stops, with every connection open."""
    down_s, stopped_s = (600, 120) if stage.long else (20, 10)
    per_second = 400
    scene = stage.scene("f18a", records=per_second * (down_s + stopped_s + 15))
    scene.start()
    scene.load(per_second)
    scene.expect("rows in the store", lambda: checks.rows_of(scene.store, "samples") > 500, 30)
    stage.kill_broker()
    sleep_awake(scene, down_s)
    stage.broker.restart()
    scene.expect("the service is ready again", scene.bellwether.ready, 60)
    stage.broker.pause()
    sleep_awake(scene, stopped_s)
    stage.broker.resume()
    scene.finish()
    stage.note(
        f"peak of {scene.bellwether.rss_peak_mb:.0f} MB resident over {down_s} s without a broker "
        f"and {stopped_s} s with one that hangs"
    )


def fault_18_outage_longer_than_the_idle_timeout(stage):
    """Partitions that cannot be read are not idle: windows must wait for what their producers could not deliver, also
    where these are back a little later than the service."""
    # The group keeps its member meanwhile, as it does through a short outage by default.
    scene = stage.scene(
        "f18b", records=15_000, client={"session.timeout.ms": "45000"}, more='[stream]\nidle_timeout = "8s"\n'
    )
    scene.start()
    scene.load(per_second=600)
    scene.expect("rows in the store", lambda: checks.rows_of(scene.store, "samples") > 500, 30)
    stage.kill_broker()
    scene.feed.hold("events")
    sleep_awake(scene, 12)
    stage.broker.restart()
    before = checks.rows_of(scene.store, "samples")
    scene.expect("the service reads again", lambda: checks.rows_of(scene.store, "samples") > before, 60)
    sleep_awake(scene, 3)
    scene.feed.release()
    scene.finish()


def fault_18_metadata_without_brokers(stage):
    """The cluster names no broker for a while, as when its controller takes all of them for dead: the service has to
    find back to those of its settings."""
    scene = stage.scene("f18c", records=8000, client={"topic.metadata.refresh.interval.ms": "1000"})
    scene.start()
    scene.load(per_second=600)
    scene.expect("rows in the store", lambda: checks.rows_of(scene.store, "samples") > 500, 30)
    rule = scene.rule(proxy.METADATA, proxy.ANSWER, proxy.without_brokers, times=-1)
    sleep_awake(scene, 5)
    stage.check("its clients were told of no broker", rule.hits >= 2, f"{rule.hits} times")
    scene.proxy.lift(rule)
    scene.finish()


def sleep_awake(scene, seconds: float):
    """Lets a fault last, and sees that the service lives through it and does not grow."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        scene.require_alive()
        scene.bellwether.weigh()
        time.sleep(0.2)


# ---- records that are too much


def fault_26_poison_pills_bombs_and_giants(stage):
    """One record in a hundred is broken; some are as large as their topic takes, and some unpack to much more."""
    scene = stage.scene("f26a", broken=30)
    scene.start()
    scene.send(0.5)
    at = newest(scene)
    for partition in range(2):
        points = [
            {"ts": at + n, "name": "giant", "labels": {"p": str(partition)}, "value": n / 3} for n in range(40_000)
        ]
        samples = [truth.Sample("giant", truth.canonical(p["labels"]), p["ts"], p["value"]) for p in points]
        put(scene, "metrics", partition, json.dumps(points, separators=(",", ":")).encode(), samples=samples)
    stage.check(
        "a good giant is nearly as large as allowed",
        0.6 < largest(scene) / PAYLOAD_BYTES_MAX <= 1,
        f"{largest(scene)} bytes",
    )
    for topic in ("metrics", "influx", "otlp"):
        put(scene, topic, 2, b'{"n": "' + b"n" * 7_900_000 + b'"}', broken="giant")
    for compression in ("gzip", "snappy", "lz4", "zstd"):
        put(
            scene,
            "events",
            3,
            bytes(48_000_000) if compression != "snappy" else bytes(7_900_000) * 8,
            broken="giant",
            compression=compression,
        )
    scene.finish(rss_mb_max=1500)


def fault_26_batch_unpacks_beyond_every_limit(stage):
    """A batch that unpacks to more than the client library takes must not stop what is behind it: it is passed over,
    and a letter without its bytes says so."""
    scene = stage.scene("f26b", broken=30)
    scene.start()
    scene.send(0.5)
    put(scene, "events", 3, bytes(130_000_000), broken="unreadable", compression="zstd")
    scene.finish()


def fault_26_letter_larger_than_its_topic_takes(stage):
    """A broken record whose key or headers alone are larger than what a broker takes by default: its letter must still
    find room."""
    scene = stage.scene("f26c", broken=30)
    scene.start()
    scene.send(0.5)
    put(scene, "metrics", 1, b'{"n": "', broken="no_room", key=b"k" * 1_200_000)
    put(scene, "metrics", 2, b'{"n": "', broken="no_room", headers=[("trace", b"h" * 1_200_000)])
    put(scene, "metrics", 3, b'{"n": "' + b"n" * 900_000, broken="no_room", headers=[("trace", b"h" * 500_000)])
    scene.finish()


def newest(scene) -> int:
    """Returns the event time that the records have come to, in microseconds."""
    return max(scene.feed.ts)


def largest(scene) -> int:
    return scene.put_bytes_max


def put(scene, topic, partition, value, samples=(), broken=None, key=None, headers=(), compression="none"):
    """Sends one record more and notes what must come of it."""
    producer = Producer(
        {
            "bootstrap.servers": scene.broker.bootstrap,
            "compression.type": compression,
            "message.max.bytes": 500_000_000,
            "batch.size": 500_000_000,
            "log_level": 2,
        }
    )
    failed = []
    producer.produce(
        f"{scene.prefix}.{topic}",
        value,
        key,
        partition,
        headers=list(headers),
        on_delivery=lambda error, message: failed.append(error) if error else None,
    )
    producer.flush(60)
    if failed:
        raise RuntimeError(f"a record of {len(value)} bytes could not be sent: {failed[0]}")
    if not broken:
        scene.put_bytes_max = max(getattr(scene, "put_bytes_max", 0), len(value))
    scene.feed._note(truth.Record(topic, partition, key, value, list(headers), list(samples), [], broken))


def fault_27_series_without_end(stage):
    """A hundred thousand new series within a second or two: refused beyond the cap, and those that were there go on."""
    scene = stage.scene("f27a", broken=0)
    census, series = cap_series(scene)
    scene.start()
    # Every series that is to come, once, so that the cap is reached by these and no other.
    first = min(sample.ts for record in census for sample in record.samples)
    points = [
        {"ts": first, "name": name, "labels": json.loads(labels), "value": n + 0.5, "kind": kind_of(name)}
        for n, (name, labels) in enumerate(series)
    ]
    put(
        scene,
        "metrics",
        0,
        json.dumps(points).encode(),
        samples=[truth.Sample(name, labels, first, n + 0.5) for n, (name, labels) in enumerate(series)],
    )
    scene.settle()
    scene.send(0.4)
    begun = time.monotonic()
    at = newest(scene)
    flood = Producer({"bootstrap.servers": stage.broker.bootstrap, "linger.ms": 5, "log_level": 2})
    for record in range(1000):
        lines = "\n".join(f"flood,id={record}-{n} value=1 {at * 1000}" for n in range(100)).encode()
        flood.produce(f"{scene.prefix}.influx", lines, partition=record % truth.PARTITIONS)
        scene.feed._note(truth.Record("influx", record % truth.PARTITIONS, None, lines, [], [], [], "too_many_series"))
        flood.poll(0)
    flood.flush(60)
    stage.note(f"100000 new series sent in {time.monotonic() - begun:.1f} s")
    scene.finish()


def kind_of(name: str) -> str:
    """The kind that the records give to a metric; of another kind it would be another series."""
    return "counter" if name.startswith(("tasks_done_total", "batch_size_")) else "gauge"


def cap_series(scene) -> tuple:
    """Allows just as many series as the records call for; returns the records and the series."""
    census = list(scene.feed.records)
    scene.feed.records = iter(census)
    series = sorted({(name, labels) for record in census for name, labels, *_ in record.samples})
    scene.reconfigure(more=f"{stages.AWAKE}[limits]\nseries_max = {len(series)}\n")
    return census, series


def fault_27_refused_records_bring_series(stage):
    """Poison pills that name series of their own: what is refused must not take the room of what is good."""
    scene = stage.scene("f27b", broken=0)
    cap_series(scene)
    scene.start()
    for n in range(200):
        value = json.dumps(
            {"ts": 4_102_444_800_000_000, "name": "poison", "labels": {"id": str(n)}, "value": 1}
        ).encode()
        scene.feed._send(truth.Record("metrics", n % truth.PARTITIONS, None, value, [], [], [], "year_2100"))
    scene.feed.flush()
    scene.settle()
    scene.finish()


# ---- clocks that are wrong


def fault_28_times_far_off(stage):
    """Records of the year 2100 and of clocks an hour ahead are refused, those of a clock an hour behind are late;
    neither moves the watermark."""
    scene = stage.scene("f28a")
    scene.start()
    scene.send(0.6)
    scene.settle()
    scene.expect("windows closed", lambda: checks.rows_of(scene.store, "service_latency_1m") > 50, 60)
    at, late = newest(scene), []
    wall = int(time.time()) * 1_000_000
    for partition in range(truth.PARTITIONS):
        for ahead in (4_102_444_800_000_000, wall + 60 * MINUTE_US):
            put(scene, "metrics", partition, request(ahead), broken="year_2100")
        # A clock that is ahead by less than the limit moves its own partition alone.
        if partition == 0:
            put(scene, "metrics", partition, request(at + 20 * MINUTE_US), samples=[sample(at + 20 * MINUTE_US)])
        behind = at - 60 * MINUTE_US - partition
        late.append((f"{scene.prefix}.metrics", partition, scene.feed.offsets[("metrics", partition)], sample(behind)))
        put(scene, "metrics", partition, request(behind))
    expected = scene.feed.produced()
    expected["samples"] += len(late)
    scene._await_rows(expected)
    db = scene.catch_up()
    scene.stop()
    # They are kept, but in no window.
    db.executemany("INSERT INTO truth.samples SELECT ?, ?, ?, ?", [tuple(row[3]) for row in late])
    present = e2e.check_rows(db, scene.store, scene.verdicts)
    rows = Counter(db.execute('SELECT topic, partition, "offset", epoch_us(ts) FROM late').fetchall())
    views = {row[0] for row in db.execute("SELECT DISTINCT view FROM late").fetchall()}
    wanted = Counter({(t, p, o, s.ts): len(OF_REQUESTS) for t, p, o, s in late})
    stage.check(
        "table `late` names each late row for each of its views",
        rows == wanted and views == OF_REQUESTS,
        f"{rows.total()} rows of {wanted.total()}, views {sorted(views)}",
    )
    letters = checks.check_dead_letters(
        stage.broker.bootstrap, scene.prefix, scene.feed.broken, e2e.SCHEMAS / "dead_letter.schema.json", scene.verdicts
    )
    checks.check_rejected(db, letters, scene.verdicts)
    e2e.check_said(scene.chosen, db, present, scene.through, scene.verdicts)


def fault_28_late_rows_are_corrected(stage):
    """What a producer was holding for an hour comes long after its windows closed, and the service is killed while it
    computes them anew: read by its name, every view is in the end what DuckDB makes of all rows."""
    scene = stage.scene("f28d")
    views = scene.work / "views"
    shutil.copytree(e2e.ROOT / "sql" / "views", views)
    for path in views.iterdir():
        path.write_text(re.sub(r"(VIEW \w+) AS", r"\1 WITH (correct_every = '1s') AS", path.read_text()))
    scene.reconfigure(more=f'{stages.AWAKE}views = "{views}"\n')
    scene.start()
    scene.send(0.6)
    scene.settle()
    scene.expect("windows closed", lambda: checks.rows_of(scene.store, "service_latency_1m") > 50, 60)
    at, late = newest(scene), []
    for n in range(90):
        late.append(sample(at - 10 * MINUTE_US - n * 40_000_000 - n))
        put(scene, "metrics", n % truth.PARTITIONS, request(late[-1].ts))
        if n % 30 == 29:
            scene.expect("late rows in the store", lambda: checks.rows_of(scene.store, "late") > n, 30)
            scene.bellwether.kill()
            scene.start()
    scene._await_rows(scene.feed.produced() | {"late": 4 * len(late)})
    db = scene.catch_up()
    sums = " - ".join(f"(SELECT sum(n) FROM service_throughput_1m{which})" for which in ("", "_emitted"))
    counted = lambda: scene.bellwether.sql(f"SELECT {sums} AS more")[1].splitlines()
    scene.expect("every late row is counted", lambda: counted() == [b"more", b"%d" % len(late)], 30)
    scene.stop()
    db.executemany("INSERT INTO truth.samples SELECT ?, ?, ?, ?", [tuple(row) for row in late])
    present = e2e.check_rows(db, scene.store, scene.verdicts)
    e2e.check_said(scene.chosen, db, present, scene.through, scene.verdicts)
    for view in e2e.views():
        db.execute(f"DROP TABLE recomputed.{view}")
        checks.recompute(db, e2e.recompute_file(view), scene.through)
        read_corrected(db, view)
        checks.check_view(db, view, e2e.recompute_file(view), scene.verdicts)
    corrected = {view for view in e2e.views() if db.execute(f"SELECT count(*) FROM {view}_corrected").fetchone()[0]}
    stage.check("those views are corrected that have late rows", corrected == OF_REQUESTS, f"{sorted(corrected)} are")


def read_corrected(db, view: str):
    """Puts the newest version of each window in the place of what a view emitted."""
    db.execute(f"ALTER TABLE {view} RENAME TO {view}_emitted")
    db.execute(f"""CREATE VIEW {view} AS
        FROM {view}_emitted ANTI JOIN {view}_corrected USING (window_start, window_end) UNION ALL BY NAME
        SELECT * EXCLUDE (revision, withdrawn) FROM {view}_corrected WHERE NOT withdrawn
        QUALIFY revision = max(revision) OVER (PARTITION BY window_start, window_end)""")


OF_REQUESTS = {"service_latency_1m", "service_errors_1m", "service_throughput_1m", "replica_latency_30s"}
LABELS = {"service": "cart", "replica": "r0", "status": "200"}


def request(ts: int) -> bytes:
    return json.dumps({"ts": ts, "name": "request_duration_seconds", "labels": LABELS, "value": 0.125}).encode()


def sample(ts: int) -> truth.Sample:
    return truth.Sample("request_duration_seconds", truth.canonical(LABELS), ts, 0.125)
