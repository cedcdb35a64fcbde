#!/usr/bin/env python3
"""The main job on a real Kafka, end to end, against an independent recomputation.

Produces seeded records in five formats, some broken in twelve ways; runs `bellwether run` on them, asking it by SQL all
the while; where asked kills it at seeded moments, and lets a stranger join its consumer group. Then checks with
deltalake, DuckDB, kcat, promtool and Prometheus that the store, the views, the dead letters and the effects are exactly
what the records call for. Ends with `N passed, M failed`; exit code 1 if any failed. Run it through `make test`, or by
hand: see --help.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer, TopicPartition, Consumer
from confluent_kafka.admin import AdminClient, NewTopic

import alerts
import checks
import service
import truth
import watcher

ROOT = Path(__file__).resolve().parents[2]
LATENESS_S_MAX = 10
CATCH_UP_S_MAX = 900
STALL_S_MAX = 60
# With fewer records some windows hold too few for a rule that wants several, and a fault may go unseen by right.
FAULTS_SHOW_FROM = 100_000
EFFECTS = ("alert", "decision", "anomaly", "forecast")
SCHEMAS = ROOT / "schemas" / "records"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the bellwether program")
    parser.add_argument("--bootstrap", default=os.environ.get("BW_KAFKA"), help="Kafka (default $BW_KAFKA)")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--broken", type=int, help="of the records (default one in a thousand, at least 120)")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs at seeded moments during the run")
    parser.add_argument("--strangers", type=int, default=1, help="how often, after a kill, another member joins its group for a while")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--now", type=int, default=int(time.time()), help="epoch seconds of the newest record")
    parser.add_argument("--effects", metavar="FILE", help="the ids of all effects: written where it is not there, else compared")
    parser.add_argument("--prefix", help="of topics and group (default e2e-<pid>)")
    parser.add_argument("--keep", metavar="DIR", help="work there and leave everything (default: a temporary folder)")
    chosen = parser.parse_args()
    if not chosen.bootstrap:
        parser.error("expected --bootstrap or $BW_KAFKA; tests/tools/kafka.sh starts a broker")
    if chosen.broken is None:
        chosen.broken = max(chosen.records // 1000, 10 * len(truth.BROKEN))
    chosen.prefix = chosen.prefix or f"e2e-{os.getpid()}"
    return chosen


class Feed:
    """Produces the records and keeps the ground truth: columns of samples and events, and the broken records."""

    def __init__(self, chosen, records: truth.Truth):
        self.prefix, self.records = chosen.prefix, iter(records)
        self.bootstrap = chosen.bootstrap
        self.producer = Producer({
            "bootstrap.servers": chosen.bootstrap, "enable.idempotence": True, "linger.ms": 20, "compression.type": "lz4",
            "queue.buffering.max.messages": 200_000, "message.max.bytes": 8_000_000,
            # That a broker is away for minutes may be the test's own doing; what is not delivered at all, `flush` tells.
            "message.timeout.ms": 0, "log_level": 2,
            # Back as soon as the service is: who delivers later than the idle timeout after an outage is late by right.
            "reconnect.backoff.max.ms": 1000,
        })
        self.offsets = {}
        self.names, self.labels, self.ts, self.values = [], [], array("q"), array("d")
        self.events, self.broken = [], []
        self.sent = 0
        self.seconds = 0.0
        self.pace = threading.Event()
        self.pace.set()
        self.error = None
        self.held, self.kept, self.sending = None, [], threading.Lock()

    def create_topics(self):
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})
        config = {"max.message.bytes": "8000000"}
        made = admin.create_topics([NewTopic(f"{self.prefix}.{t}", truth.PARTITIONS, 1, config=config) for t in truth.FORMATS])
        for future in made.values():
            future.result(30)

    def run(self):
        """Sends everything; keeps an error for the thread that joins."""
        try:
            begun = time.monotonic()
            self.send()
            self.flush()
            self.seconds = time.monotonic() - begun
        except Exception as error:
            self.error = error

    def send(self, count=None):
        """Sends the next records, as many as asked for or all that are left; they may be on their way still."""
        for record in itertools.islice(self.records, count):
            self.pace.wait()
            self._send(record)

    def flush(self, seconds=120):
        left = self.producer.flush(seconds)
        if left:
            raise RuntimeError(f"{left} records could not be delivered within {seconds} s")

    def _send(self, record):
        # Noted before it is sent: who counts what the service has stored never finds more than was noted.
        self._note(record)
        with self.sending:
            if record.topic == self.held:
                self.kept.append(record)
            else:
                self._produce(record)
        self.sent += 1
        if self.sent % 1000 == 0:
            self.producer.poll(0)

    def hold(self, topic):
        """Keeps what is for a topic, as a producer does that cannot deliver, until `release`."""
        self.held = topic

    def release(self):
        with self.sending:
            for record in self.kept:
                self._produce(record)
            self.held, self.kept = None, []

    def _produce(self, record):
        while True:
            try:
                self.producer.produce(f"{self.prefix}.{record.topic}", record.value, record.key, record.partition, headers=record.headers)
                break
            except BufferError:
                self.producer.poll(0.1)

    def _note(self, record):
        at = (record.topic, record.partition)
        offset = self.offsets.get(at, 0)
        self.offsets[at] = offset + 1
        for name, labels, ts, value in record.samples:
            self.names.append(name)
            self.labels.append(labels)
            self.ts.append(ts)
            self.values.append(value)
        self.events.extend(record.events)
        if record.broken:
            self.broken.append((*at, offset, record.key, record.value, record.headers, record.broken))

    def tables(self):
        samples = {"name": pa.array(self.names).dictionary_encode(), "labels": pa.array(self.labels).dictionary_encode(),
                   "ts": pa.array(self.ts, pa.int64()), "value": pa.array(self.values, pa.float64())}
        samples["name"], samples["labels"] = samples["name"].cast(pa.string()), samples["labels"].cast(pa.string())
        columns = zip(*self.events)
        kinds = [pa.int64()] + [pa.string()] * 5 + [pa.float64()] + [pa.string()] * 3
        return samples, {f: pa.array(c, k) for f, c, k in zip(truth.Event._fields, columns, kinds)}

    def produced(self) -> dict:
        """Returns the rows that what was sent so far calls for, by table."""
        return {"samples": len(self.values), "events": len(self.events), "rejected": len(self.broken)}

    def check_offsets(self, verdicts):
        """Our own count of offsets is the broker's: the ground truth names the right record."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "e2e-offsets"})
        wrong = []
        for (topic, partition), count in self.offsets.items():
            low, high = consumer.get_watermark_offsets(TopicPartition(f"{self.prefix}.{topic}", partition), timeout=30)
            if (low, high) != (0, count):
                wrong.append((topic, partition, low, high, count))
        consumer.close()
        verdicts.add("every record produced stands once on its topic", not wrong, f"{sum(self.offsets.values())} on {len(self.offsets)} partitions {wrong[:3]}")


def run_with_kills(bellwether, feed, chosen):
    """Produces while the service runs; kills it whenever the feed passes one of the seeded marks, and after the first of
    them lets a stranger take a part of its partitions for a while."""
    rng = random.Random(chosen.seed + 1)
    total = chosen.records
    marks = sorted(rng.randrange(total // 20, total - total // 20) for _ in range(chosen.kills))
    thread = threading.Thread(target=feed.run, daemon=True)
    bellwether.start()
    thread.start()
    for number, mark in enumerate(marks, 1):
        await_sent(bellwether, feed, thread, mark)
        feed.pace.clear()
        print(f"  kill {number} of {chosen.kills} at {feed.sent} records sent", flush=True)
        require_alive(bellwether)
        bellwether.kill()
        bellwether.start()
        # Every third restart goes on at once, so that the next kill may hit a service that is still starting.
        if number % 3:
            service.wait_until(lambda: bellwether.ready() or not bellwether.alive(), 120)
        feed.pace.set()
        if number <= chosen.strangers:
            intrude(bellwether, feed, thread, chosen)
    thread.join()


def intrude(bellwether, feed, thread, chosen):
    """Joins the service's group as another member, as a dead one may that is not yet missed, and leaves it again. What
    the service says must not depend on the part of the records it has meanwhile."""
    stranger = Consumer({"bootstrap.servers": chosen.bootstrap, "group.id": chosen.prefix, "enable.auto.commit": False,
                         "partition.assignment.strategy": "cooperative-sticky", "log_level": 3})
    stranger.subscribe([f"{chosen.prefix}.{topic}" for topic in truth.FORMATS])
    # Nothing comes meanwhile: the partitions that stay are at their ends when the group moves.
    feed.pace.clear()
    try:
        taken = lambda: stranger.consume(1000, timeout=0.1) is not None and len(stranger.assignment())
        if not service.wait_until(taken, 60):
            raise RuntimeError("the group gave the stranger no partition within 60 s")
        print(f"  a stranger takes {len(stranger.assignment())} partitions at {feed.sent} records sent", flush=True)
        feed.pace.set()
        mark = min(feed.sent + chosen.records // 10, chosen.records)
        await_sent(bellwether, feed, thread, mark, meanwhile=lambda: stranger.consume(1000, timeout=0.01))
        print(f"  the stranger leaves at {feed.sent} records sent", flush=True)
    finally:
        feed.pace.set()
        stranger.close()


def await_sent(bellwether, feed, thread, mark, meanwhile=lambda: None):
    while feed.sent < mark and thread.is_alive():
        require_alive(bellwether)
        meanwhile()
        time.sleep(0.002)


def require_alive(bellwether):
    if not bellwether.alive():
        raise RuntimeError(f"bellwether ended by itself; the end of its log:\n{bellwether.log_tail()}")


def await_caught_up(bellwether, store, expected, begun: float) -> tuple:
    """Waits until every table has the rows expected of it; gives up when nothing has changed for a while.

    Returns (whether all are there, seconds from `begun` to the last change)."""
    changed = time.monotonic()
    last = None
    while time.monotonic() - begun < CATCH_UP_S_MAX:
        require_alive(bellwether)
        bellwether.weigh()
        have = {name: checks.rows_of(store, name) for name in expected}
        if have != last:
            last, changed = have, time.monotonic()
            done = " ".join(f"{n}={have[n]}/{expected[n]}" for n in ("samples", "events", "rejected") if n in have)
            print(f"  {time.monotonic() - begun:6.1f} s {done}", flush=True)
        if all(have[name] >= rows for name, rows in expected.items()):
            return True, changed - begun
        if time.monotonic() - changed > STALL_S_MAX:
            break
        time.sleep(0.5)
    short = {n: f"{last[n]}/{r}" for n, r in expected.items() if last[n] < r}
    print(f"  nothing changed for {STALL_S_MAX} s; short: {short}", flush=True)
    return False, changed - begun


def check_scrape(bellwether, work, verdicts):
    """promtool accepts the scrape page, and a real Prometheus scrapes it."""
    status, page = bellwether.get("/metrics", accept="text/plain;version=0.0.4")
    linted = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    complaint = (linted.stdout + linted.stderr).decode(errors="replace").strip()[:400]
    verdicts.add("promtool check metrics accepts /metrics", status == 200 and linted.returncode == 0, complaint or f"{len(page)} bytes")
    status, open_page = bellwether.get("/metrics", accept="application/openmetrics-text;version=1.0.0")
    verdicts.add("/metrics speaks OpenMetrics", status == 200 and open_page.endswith(b"# EOF\n"), f"{len(open_page)} bytes")
    status, answer = bellwether.get("/readyz")
    verdicts.add("/readyz says ready", status == 200, f"{status} {answer[:200]!r}")
    status, answer = bellwether.sql("SELECT i.inputs, i.decoded > 0 AND i.decoded + i.rejected <= i.records, l.records >= 0 FROM (SELECT count(*) AS inputs, sum(records) AS records, sum(decoded) AS decoded, sum(rejected) AS rejected FROM system.inputs) i, (SELECT sum(records) AS records FROM system.lag) l")
    verdicts.add("system.inputs and system.lag tell how far it is", status == 200 and answer.decode().splitlines()[1].endswith(",true,true"), answer.decode()[:200])
    port = service.free_port()
    (work / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: bellwether\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{bellwether.port}']}}]\n")
    with open(work / "prometheus.log", "wb") as log:
        server = subprocess.Popen(["prometheus", f"--config.file={work / 'prometheus.yml'}", f"--storage.tsdb.path={work / 'tsdb'}",
                                   f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    prometheus = service.Service("", Path(), Path(), port)

    def scraped():
        status, body = prometheus.get("/api/v1/query?query=up")
        result = json.loads(body)["data"]["result"] if status == 200 else []
        return any(r["value"][1] == "1" for r in result)

    try:
        good = service.wait_until(scraped, 30)
        _, body = prometheus.get("/api/v1/query?query=scrape_samples_scraped")
        verdicts.add("a real Prometheus scrapes /metrics", good, body.decode(errors="replace")[:200])
    finally:
        server.terminate()
        server.wait(30)


def check_all(chosen, feed, db, store, through, verdicts):
    # Merged whole, so that all that follows is held against what merges made of it.
    for command in ("verify", "compact", "verify"):
        done = subprocess.run(
            [chosen.binary, "store", command, "--data", str(store)], capture_output=True, text=True, timeout=120, check=False
        )
        verdicts.add(f"bellwether store {command}", done.returncode == 0, (done.stdout + done.stderr).strip()[-300:])
    present = check_rows(db, store, verdicts)
    expected = checks.check_dead_letters(chosen.bootstrap, chosen.prefix, feed.broken, SCHEMAS / "dead_letter.schema.json", verdicts)
    checks.check_rejected(db, expected, verdicts)
    late = db.execute("SELECT count(*) FROM late").fetchone()[0] if "late" in present else None
    verdicts.add("no row is late", late == 0, f"{late} are")
    effects = check_said(chosen, db, present, through, verdicts)
    compare_effects(chosen, {kind: sorted(record["id"] for record in records) for kind, records in effects.items()}, verdicts)


def check_rows(db, store, verdicts) -> set:
    """Samples, events and every view are what the records call for. Returns the names of the tables there."""
    present = checks.open_store(db, store, verdicts)
    checks.check_samples(db, verdicts)
    checks.check_events(db, verdicts)
    for view in views():
        if recompute_file(view).exists() and view in present:
            checks.check_view(db, view, recompute_file(view), verdicts)
        else:
            verdicts.add(f"view {view} equals its recomputation", False, f"table there: {view in present}; {recompute_file(view)} there: {recompute_file(view).exists()}")
    return present


def check_said(chosen, db, present, through, verdicts) -> dict:
    """The effects are those that the recomputed views call for, each once. Returns the records, by kind."""
    effects = {}
    # With few records there may be nothing strange to find.
    optional = {"anomaly"} if chosen.records < FAULTS_SHOW_FROM else set()
    for kind in EFFECTS:
        schema = SCHEMAS / f"{kind}.schema.json"
        effects[kind] = checks.check_effects(db, present, chosen.bootstrap, chosen.prefix, kind, schema, verdicts, may_be_none=kind in optional)
    must, may = alerts.expected(db, ROOT, {view: f"recomputed.{view}" for view in views()}, through)
    alerts.check(effects["alert"], must, may, verdicts)
    alerts.check_faults(effects["alert"], None if chosen.records >= FAULTS_SHOW_FROM else must, verdicts)
    checks.check_decisions(effects["decision"], verdicts)
    return effects


def compare_effects(chosen, ids: dict, verdicts):
    """The same records say the same things, however they were interleaved and however often the service was killed."""
    if not chosen.effects:
        return
    file = Path(chosen.effects)
    if not file.exists():
        return file.write_text(json.dumps(ids))
    before = json.loads(file.read_text())
    for kind in EFFECTS:
        ours, theirs = set(ids[kind]), set(before[kind])
        verdicts.add(f"effects of kind {kind} have the ids of the run before", ours == theirs,
                     f"{len(theirs)} then, {len(ours)} now, {len(theirs - ours)} missing, {len(ours - theirs)} too many")


def views() -> list:
    return [path.stem for path in sorted((ROOT / "sql" / "views").glob("*.sql"))]


def recompute_file(view: str) -> Path:
    return ROOT / "tests" / "tools" / "recompute" / f"{view}.sql"


def expectations(feed, through):
    """Returns a database that holds the truth and every view recomputed, and the rows expected of each table."""
    db = checks.connect()
    checks.load_truth(db, *feed.tables())
    expected = feed.produced()
    for view in views():
        if recompute_file(view).exists():
            expected[view] = checks.recompute(db, recompute_file(view), through)
    return db, expected


def run(chosen, work: Path, verdicts) -> None:
    through = (chosen.now - LATENESS_S_MAX) * 1_000_000
    feed = Feed(chosen, truth.Truth(chosen.seed, chosen.records, chosen.broken, chosen.now))
    feed.create_topics()
    store, port = work / "store", service.free_port()
    # About four replicas hold the usual load of one service in a minute.
    capacity = max(1.0, chosen.records * 0.45 / 50 / len(truth.SERVICES) / 4)
    config = work / "bellwether.toml"
    config.write_text(service.configuration(chosen.bootstrap, chosen.prefix, store, port, truth.FORMATS, capacity))
    bellwether = service.Service(chosen.binary, config, work / "bellwether.log", port)
    watching = watcher.Watcher(bellwether, feed.produced)
    watching.start()
    try:
        if chosen.kills:
            run_with_kills(bellwether, feed, chosen)
        else:
            feed.run()
        if feed.error:
            raise feed.error
        begun = time.monotonic()
        print(f"  {feed.sent} records produced in {feed.seconds:.1f} s", flush=True)
        if chosen.keep:
            samples, events = feed.tables()
            pq.write_table(pa.table(samples), work / "truth_samples.parquet")
            pq.write_table(pa.table(events), work / "truth_events.parquet")
        feed.check_offsets(verdicts)
        db, expected = expectations(feed, through)
        if not chosen.kills:
            # Started on a full topic and an idle machine: what it reads per second is its own.
            begun = time.monotonic()
            bellwether.start()
        done, seconds = await_caught_up(bellwether, store, expected, begun)
        verdicts.add("the service catches up", done, f"{seconds:.1f} s after the last record was produced" if chosen.kills else
                     f"{feed.sent} records in {seconds:.1f} s from start, {feed.sent / max(seconds, 1e-9):,.0f} a second")
        watching.stop()
        watching.check(expected, verdicts)
        check_scrape(bellwether, work, verdicts)
        code = bellwether.stop(60)
        verdicts.add("SIGTERM ends it cleanly", code == 0, f"exit code {code}")
        if chosen.kills:
            verdicts.add("it was killed as often as asked", bellwether.kills == chosen.kills, f"{bellwether.kills} SIGKILLs, {bellwether.starts} starts")
        print(f"  {bellwether.cpu_s:.1f} s of CPU ({bellwether.cpu_s / feed.sent * 1e6:.1f} s per million records), "
              f"peak of {bellwether.rss_peak_mb:.0f} MB resident", flush=True)
    finally:
        watching.stop()
        if bellwether.alive():
            bellwether.process.kill()
            bellwether.process.wait()
    check_all(chosen, feed, db, store, through, verdicts)


def main() -> int:
    chosen = arguments()
    for program in ("kcat", "promtool", "prometheus"):
        if shutil.which(program) is None:
            print(f"e2e: expected {program} on PATH, found none; type: tests/tools/setup.sh test", file=sys.stderr)
            return 2
    work = Path(chosen.keep) if chosen.keep else Path(tempfile.mkdtemp(prefix="bellwether-e2e-"))
    work.mkdir(parents=True, exist_ok=True)
    print(f"e2e: {chosen.records} records, {chosen.broken} broken, {chosen.kills} kills; --seed {chosen.seed} --now {chosen.now}; folder {work}", flush=True)
    verdicts, begun = checks.Verdicts(), time.monotonic()
    try:
        run(chosen, work, verdicts)
    except Exception as error:
        import traceback

        traceback.print_exc()
        verdicts.add("the run goes through", False, f"{type(error).__name__}: {error}"[:2000])
    failed = verdicts.failed()
    if failed:
        log = work / "bellwether.log"
        print(f"e2e: the end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []))
    elif not chosen.keep:
        shutil.rmtree(work)
    print(f"e2e: {len(verdicts.rows) - failed} passed, {failed} failed in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
