"""What the tests of faults play on: a real broker behind a proxy, and scenes, each with topics, records, a service and
a store of its own, judged in the end by the oracle of the end-to-end test."""

import argparse
import os
import random
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import checks
import e2e
import service
import truth
from proxy import Proxy

HERE = Path(__file__).resolve().parent
CATCH_UP_S_MAX = 300
STALL_S_MAX = 60
BROKER_S_MAX = 180
POLL_S = 0.25
# A debug build with small inputs takes about 200 MB; this leaves room for its limits, not for growth.
RSS_MB_MAX = 600

# A dead member is missed soon, and a broker that is back is found soon.
CLIENT = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "500", "reconnect.backoff.max.ms": "1000"}
BROKER = {
    # An open transaction past its time is ended soon.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
    # A batch may be larger than what a broker takes as delivered.
    "message.max.bytes": 8_000_000,
}
# A pause of the test is no silence of a partition: its producers' clocks stand still too.
AWAKE = '[stream]\nidle_timeout = "30m"\n'


class Verdicts(checks.Verdicts):
    """Keeps what is to be said until the end: of what is right, only on demand."""

    def __init__(self, talkative=False):
        super().__init__()
        self.talkative, self.said = talkative, []

    def add(self, name, good, detail):
        self.rows.append((name, bool(good), detail))
        if self.talkative or not good:
            self.said.append(f"   {'ok  ' if good else 'FAIL'} {name}: {detail}")

    def note(self, text: str):
        self.said.append(f"   {text.rstrip()}")

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.said)


class Broker:
    """A real broker with a proxy in front of its second listener."""

    def __init__(self, folder: Path):
        self.folder, self.proxy = folder, Proxy()
        settings = [word for key, value in BROKER.items() for word in ("--set", f"{key}={value}")]
        self._call("start", "--proxied", str(self.proxy.port), *settings)
        told = dict(re.findall(r"^export (\w+)=(.*)$", self._call("env"), re.M))
        self.bootstrap, self.proxy.target = told["BW_KAFKA"], told["BW_KAFKA_PROXIED"]
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})

    def _call(self, *words) -> str:
        done = subprocess.run(
            [str(HERE / "kafka.sh"), *words, "--dir", str(self.folder)],
            capture_output=True,
            text=True,
            timeout=BROKER_S_MAX,
            env=os.environ | {"BW_KAFKA_HEAP": "512m"},
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"kafka.sh {words[0]}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def kill(self):
        self._call("kill")

    def restart(self):
        before = self._skipped_markers()
        self._call("restart")
        if self._skipped_markers() > before:
            raise RuntimeError(
                "the broker took a transaction for ended without its markers when it started (seen in Apache Kafka 4.3.1 "
                "where no other replica leads meanwhile): half of what it committed stays open for good"
            )

    def _skipped_markers(self) -> int:
        return (self.folder / "server.log").read_text(errors="replace").count("deleted already and hence can be skipped")

    def pause(self):
        self._call("pause")

    def resume(self):
        self._call("resume")

    def remove(self):
        self.proxy.close()
        self._call("remove")


class Stage:
    """Makes the scenes of one run, one after the other."""

    def __init__(self, binary: str, work: Path, seed: int, long=False, talkative=False, keep=False):
        self.binary, self.work, self.seed = binary, work, seed
        self.long, self.talkative, self.keep = long, talkative, keep
        work.mkdir(parents=True)
        self.broker = Broker(work / "kafka")
        self.verdicts = None
        self.open = []

    def begin(self):
        """Starts the verdicts of the next fault."""
        self.verdicts = Verdicts(self.talkative)

    def scene(self, name: str, **how) -> "Scene":
        self.open.append(Scene(self, name, **how))
        return self.open[-1]

    def end(self):
        """Ends what the last fault left running, and deletes its topics; keeps the folder where something failed."""
        for scene in self.open:
            scene.close(keep=self.keep or self.verdicts.failed() > 0)
        self.open.clear()

    def abandon(self):
        """Ends every process at once."""
        for scene in self.open:
            scene.kill_all()
        self.broker.remove()

    def kill_broker(self):
        """Kills the broker while transactions are open, but none is being ended: one that is, it ends by half when it
        starts again, as it takes its own partitions for deleted until it is a leader. Only other replicas would help."""
        paused = [one for scene in self.open for one in scene.services if one.alive()]
        for one in paused:
            one.pause()
        time.sleep(0.5)  # Ending a transaction takes some milliseconds; nothing outside of the broker tells when it is done.
        self.broker.kill()
        for one in paused:
            one.resume()

    def check(self, name, good, detail):
        self.verdicts.add(name, good, detail)

    def note(self, text: str):
        """Says a fact worth knowing that is neither right nor wrong."""
        self.verdicts.note(text)


class Scene:
    """Records on topics of their own, a service that reads them through the proxy, and what must come of it.

    `client` and `more`: properties of its Kafka clients and sections of its configuration, besides the usual ones."""

    def __init__(
        self, stage: Stage, name: str, records=3000, broken=60, client=None, more=AWAKE, feed=e2e.Feed, commit="500ms"
    ):
        self.stage, self.broker, self.proxy, self.verdicts = stage, stage.broker, stage.broker.proxy, stage.verdicts
        self.prefix, self.rng = f"{name}-{stage.seed}", random.Random(f"{name}-{stage.seed}")
        self.now = int(time.time())
        self.through = (self.now - e2e.LATENESS_S_MAX) * 1_000_000
        self.chosen = argparse.Namespace(
            prefix=self.prefix, bootstrap=self.broker.bootstrap, records=records, effects=None, binary=stage.binary
        )
        self.feed = feed(self.chosen, truth.Truth(stage.seed, records, broken, self.now))
        self.feed.create_topics()
        self.records, self.client, self.more, self.commit = records, CLIENT | (client or {}), more, commit
        self.work = stage.work / self.prefix
        self.work.mkdir()
        self.services = []
        self.bellwether = self.service("store")
        self.store = self.work / "store"
        self.loading = None

    def service(self, store: str) -> service.Service:
        """Returns a service of this scene that keeps its tables in a folder of that name."""
        port = service.free_port()
        config = self.work / f"{store}-{port}.toml"
        client = self.client | {"client.id": self.prefix}
        capacity = max(1.0, self.records * 0.45 / 50 / len(truth.SERVICES) / 4)
        config.write_text(
            service.configuration(
                self.proxy.address,
                self.prefix,
                self.work / store,
                port,
                truth.FORMATS,
                capacity,
                client,
                self.more,
                self.commit,
            )
        )
        self.services.append(service.Service(self.stage.binary, config, self.work / f"bellwether-{port}.log", port))
        return self.services[-1]

    def reconfigure(self, more: str):
        """Takes other sections of the configuration; before the first start."""
        self.more = more
        self.bellwether = self.service("store")

    # ---- acting

    def start(self):
        self.bellwether.start()
        self.expect("the service is ready", lambda: self.bellwether.ready() or not self.bellwether.alive(), 60)
        self.require_alive()

    def rule(self, *args, **kwargs):
        """Puts a rule for this scene's service in force, see `proxy.Rule`."""
        return self.proxy.rule(self.prefix, *args, **kwargs)

    def send(self, share: float):
        """Sends about that share of all records, more or less by the seed, and sees them onto their topics."""
        self.feed.send(int(self.records * share * self.rng.uniform(0.8, 1.1)))
        self.feed.flush()

    def send_until(self, rule, chunk=100):
        """Sends until a rule has met its frame."""
        while not rule.seen.is_set():
            before = self.feed.sent
            self.feed.send(chunk)
            self.feed.flush()
            if self.feed.sent == before:
                raise RuntimeError("all records were sent before the fault could be placed")
            rule.seen.wait(0.3)

    def load(self, per_second: int):
        """Sends all that is left from a thread of its own, at this rate; `unload` waits for its end."""

        def run():
            try:
                due = time.monotonic()
                while (before := self.feed.sent) < self.records:
                    self.feed.send(max(1, per_second // 20))
                    due += (self.feed.sent - before) / per_second
                    # Paces the load, waits for nothing.
                    time.sleep(max(0.0, due - time.monotonic()))
            except Exception as error:
                self.feed.error = error

        self.loading = threading.Thread(target=run, daemon=True)
        self.loading.start()

    def unload(self):
        self.loading.join()
        if self.feed.error:
            raise self.feed.error

    def require_alive(self):
        if not self.bellwether.alive():
            raise RuntimeError(f"bellwether ended by itself; it said: {self.bellwether.log_tail(1)}")

    def expect(self, what: str, condition, seconds: float):
        """Waits for a condition; that it comes is part of what is tested."""
        if not service.wait_until(condition, seconds):
            raise RuntimeError(
                f"expected within {seconds:.0f} s: {what}; the end of the log:\n{self.bellwether.log_tail(5)}"
            )

    def settle(self):
        """Waits until the store holds all that was sent so far, and the group has committed it."""
        self._await_rows(self.feed.produced())
        wanted = {
            (f"{self.prefix}.{topic}", partition): count for (topic, partition), count in self.feed.offsets.items()
        }

        def reached():
            have = self.committed()
            return all(have.get(at, -1) >= next_ for at, next_ in wanted.items())

        self.expect("the group's offsets at the ends", reached, CATCH_UP_S_MAX)

    def committed(self) -> dict:
        """Returns the offsets that the group has committed; none while nobody can tell."""
        # As a client that never joins: the admin client of the library crashes where the coordinator is not up yet.
        client = Consumer({"bootstrap.servers": self.broker.bootstrap, "group.id": self.prefix, "log_level": 2})
        try:
            asked = [TopicPartition(f"{self.prefix}.{t}", p) for t in truth.FORMATS for p in range(truth.PARTITIONS)]
            return {(at.topic, at.partition): at.offset for at in client.committed(asked, timeout=10) if at.offset >= 0}
        except KafkaException:
            return {}
        finally:
            client.close()

    def _await_rows(self, expected: dict):
        """Waits until every table has the rows expected of it; gives up when nothing has changed for a while."""
        begun = changed = time.monotonic()
        last = None
        while time.monotonic() - begun < CATCH_UP_S_MAX and time.monotonic() - changed < STALL_S_MAX:
            self.require_alive()
            self.bellwether.weigh()
            have = {name: checks.rows_of(self.store, name) for name in expected}
            if all(have[name] >= rows for name, rows in expected.items()):
                return
            if have != last:
                last, changed = have, time.monotonic()
            time.sleep(POLL_S)
        short = {name: f"{have[name]}/{rows}" for name, rows in expected.items() if have[name] < rows}
        raise RuntimeError(
            f"not caught up, nothing changed for {time.monotonic() - changed:.0f} s; short: {short}; "
            f"{checks.rows_of(self.store, 'late')} rows are late; the end of the log:\n{self.bellwether.log_tail(5)}"
        )

    def await_whole(self):
        """Waits until the service is the group's only member and has every partition."""
        every = len(truth.FORMATS) * truth.PARTITIONS
        self.expect("the group whole again", lambda: self.held() == every and self.bellwether.ready(), 60)

    def held(self) -> int:
        """Returns how many partitions the only member of the group has; none while it is not alone, or not settled."""
        told = self.broker.admin.describe_consumer_groups([self.prefix])[self.prefix].result(30)
        if told.state.name != "STABLE" or len(told.members) != 1:
            return 0
        return len(told.members[0].assignment.topic_partitions)

    # ---- what is seen from outside

    def topics(self) -> list:
        """Returns the topics of this scene that there are."""
        return [t for t in self.broker.admin.list_topics(timeout=30).topics if t.startswith(f"{self.prefix}.")]

    def outputs(self) -> list:
        inputs = {f"{self.prefix}.{t}" for t in truth.FORMATS}
        return [t for t in self.topics() if t not in inputs]

    def open_transactions(self) -> list:
        """Returns the partitions of outputs at whose end a transaction is open."""
        partitions = [
            TopicPartition(t, p)
            for t in self.outputs()
            for p in self.broker.admin.list_topics(t, timeout=30).topics[t].partitions
        ]
        decided, written = (
            checks.ends_for(self.broker.admin, partitions, level)
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
        )
        return [p for p in partitions if decided[p] < written[p]]

    def copies(self, isolation: str) -> int:
        """Returns how many effects and dead letters stand on their topics more than once for such a reader."""
        ids = []
        for topic in self.outputs():
            for record in checks.read_topic(self.broker.bootstrap, topic, isolation):
                headers = dict(record.headers() or [])
                ids.append(
                    headers.get("ce_id")
                    or tuple(sorted((n, v) for n, v in headers.items() if n.startswith("__connect.errors.")))
                )
        return len(ids) - len(set(ids))

    # ---- the end

    def finish(self, rss_mb_max=RSS_MB_MAX, restarts=0):
        """Sends the rest, waits until all is there, stops the service, and compares everything with the truth."""
        db = self.catch_up()
        self.verdicts.add(
            "the service went on by itself" if restarts == 0 else "the service was started as often as needed",
            self.bellwether.starts == 1 + restarts,
            f"{self.bellwether.starts} starts",
        )
        self.stop(rss_mb_max)
        e2e.check_all(self.chosen, self.feed, db, self.store, self.through, self.verdicts)

    def catch_up(self):
        """Sends the rest and waits until the store has every row; returns the database with the truth."""
        if self.loading:
            self.unload()
        self.feed.send()
        self.feed.flush()
        db, expected = e2e.expectations(self.feed, self.through)
        self._await_rows(expected)
        return db

    def stop(self, rss_mb_max=RSS_MB_MAX):
        code = self.bellwether.stop(60)
        self.verdicts.add(
            "SIGTERM ends it cleanly", code == 0, f"exit code {code}; {self.bellwether.log_tail(3) if code else ''}"
        )
        self.verdicts.add(
            "memory stays bounded",
            0 < self.bellwether.rss_peak_mb < rss_mb_max,
            f"peak of {self.bellwether.rss_peak_mb:.0f} MB resident, at most {rss_mb_max} expected",
        )

    def expect_end(self, seconds: float, *words):
        """The service ends by itself with an error that says these words."""
        code = self.bellwether.await_end(seconds)
        said = self.bellwether.log_tail(40)
        missing = [word for word in words if word not in said]
        unsaid = f"not said: {missing}; " if missing else ""
        last = said.splitlines()[-1] if said else ""
        loud = code not in (None, 0) and not missing
        self.verdicts.add("it stops, loudly", loud, f"exit code {code}, {unsaid}said: {last}")

    def close(self, keep: bool):
        self.kill_all()
        if topics := self.topics():
            for future in self.broker.admin.delete_topics(topics).values():
                future.result(30)
        if not keep:
            shutil.rmtree(self.work, ignore_errors=True)

    def kill_all(self):
        for one in self.services:
            if one.alive():
                one.kill()
