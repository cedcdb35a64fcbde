"""Faults of what is read: a group that is never at rest, positions within a batch, transactions that were aborted,
topics made anew, and records that are gone before they were read."""

import itertools
import struct
import time
from collections import Counter
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

import checks
import e2e
import proxy
import service
import truth

BULK = 300_000
DAMAGED = "metrics"


# ---- the group


def fault_13_rebalance_every_two_seconds(stage):
    """Strangers join the group and leave it, again and again, under load."""
    rounds = 60 if stage.long else 5
    scene = stage.scene("f13", records=rounds * 1200)
    scene.start()
    scene.load(per_second=400)
    taken = []
    for _ in range(rounds):
        stranger = Consumer(
            {
                "bootstrap.servers": stage.broker.bootstrap,
                "group.id": scene.prefix,
                "enable.auto.commit": False,
                "partition.assignment.strategy": "cooperative-sticky",
                "log_level": 2,
            }
        )
        stranger.subscribe([f"{scene.prefix}.{topic}" for topic in truth.FORMATS])
        try:
            has = lambda: stranger.consume(1000, timeout=0.1) is not None and len(stranger.assignment()) > 0
            if not service.wait_until(has, 30):
                raise RuntimeError("the group gave the stranger no partition within 30 s")
            taken.append(len(stranger.assignment()))
            until = time.monotonic() + 1
            while time.monotonic() < until:
                stranger.consume(1000, timeout=0.1)
        finally:
            stranger.close()
    scene.unload()
    stage.note(f"strangers took {taken} of {len(truth.FORMATS) * truth.PARTITIONS} partitions")
    scene.await_whole()
    scene.finish()


# ---- positions


def fault_14_records_before_the_position(stage):
    """Killed within a batch that the broker can only send whole: what is before the position is not counted again."""
    scene = stage.scene("f14", records=2_000, broken=20, commit="5ms")
    bulk = Producer(
        {
            "bootstrap.servers": stage.broker.bootstrap,
            "linger.ms": 3000,
            "batch.size": 60_000_000,
            "message.max.bytes": 60_000_000,
            "batch.num.messages": BULK,
            "queue.buffering.max.messages": 2 * BULK,
            "compression.type": "lz4",
            "log_level": 2,
        }
    )
    start = scene.now * 1_000_000 - (truth.SPAN_S + truth.TAIL_S) * 1_000_000
    for n in range(BULK):
        at, value = start + n, n / 7
        line = f"bulk,n=1 v={value:.5f} {at * 1000}".encode()
        scene.feed._note(
            truth.Record(
                "influx", 0, None, line, [], [truth.Sample("bulk_v", '{"n":"1"}', at, float(f"{value:.5f}"))], [], None
            )
        )
        bulk.produce(f"{scene.prefix}.influx", line, partition=0)
    bulk.flush(60)
    batch = first_batch(stage.broker.folder, f"{scene.prefix}.influx", 0)
    stage.check("they stand in one batch", batch == BULK, f"{batch} of {BULK}")
    cuts = []
    for _ in range(20):
        scene.bellwether.start()
        before = checks.rows_of(scene.store, "samples")
        moved = lambda: checks.rows_of(scene.store, "samples") > before or not scene.bellwether.alive()
        scene.expect("more rows in the store", moved, 60)
        scene.bellwether.kill()
        cuts.append(checks.rows_of(scene.store, "samples"))
        if cuts[-1] >= BULK or len([cut for cut in cuts if cut < BULK]) >= 2:
            break
    stage.check("it was killed within the batch", any(0 < cut < BULK for cut in cuts), f"at {cuts} of {BULK}")
    scene.start()
    scene.finish(restarts=len(cuts))


def first_batch(folder, topic: str, partition: int) -> int:
    """Returns how many records the first batch of a log has, as its header on the broker's disk says."""
    with open(folder / "data" / f"{topic}-{partition}" / f"{0:020}.log", "rb") as log:
        return struct.unpack_from(">i", log.read(61), 23)[0] + 1


# ---- transactions upstream


class TransactionalFeed(e2e.Feed):
    """Sends in transactions, and where `ghosts` is set a copy of each in a transaction that it aborts."""

    ghosts, size = True, 150

    def __init__(self, chosen, records):
        super().__init__(chosen, records)
        self.producer = Producer(
            {
                "bootstrap.servers": chosen.bootstrap,
                "transactional.id": f"{chosen.prefix}-upstream",
                "message.max.bytes": 60_000_000,
                "log_level": 2,
            }
        )
        self.producer.init_transactions(60)
        self.aborted = 0

    def send(self, count=None):
        while chunk := list(itertools.islice(self.records, min(self.size, count or self.size))):
            self.producer.begin_transaction()
            for record in chunk:
                self._send(record)
            self.flush()
            self.producer.commit_transaction(60)
            if self.ghosts:
                self.producer.begin_transaction()
                for record in chunk:
                    self._produce(record)
                self.flush()
                self.producer.abort_transaction(60)
                self.aborted += len(chunk)
            if count is not None and (count := count - len(chunk)) <= 0:
                return

    def _send(self, record):
        # Markers of transactions take offsets, so where a record stands is known when it is there.
        known = len(self.broken)
        self._note(record)
        broken = self.broken.pop() if len(self.broken) > known else None

        def delivered(error, message):
            if error is None:
                self.offsets[(record.topic, record.partition)] = message.offset() + 1
                if broken:
                    self.broken.append((*broken[:2], message.offset(), *broken[3:]))

        self._produce(record, delivered)
        self.sent += 1

    def _produce(self, record, delivered=None):
        self.producer.produce(
            f"{self.prefix}.{record.topic}",
            record.value,
            record.key,
            record.partition,
            headers=record.headers,
            on_delivery=delivered,
        )


class CommittedFeed(TransactionalFeed):
    ghosts = False


def fault_15_aborted_upstream_transactions(stage):
    """Producers that abort: their records stand on the topics, with gaps for the markers, and do not count."""
    scene = stage.scene("f15a", feed=TransactionalFeed)
    scene.start()
    scene.send(0.5)
    scene.bellwether.kill()
    scene.send(0.2)
    scene.start()
    scene.finish(restarts=1)
    stands = sum(
        len(checks.read_topic(stage.broker.bootstrap, f"{scene.prefix}.{t}", "read_uncommitted")) for t in truth.FORMATS
    )
    stage.check(
        "the aborted records stand on the topics",
        stands == scene.feed.sent + scene.feed.aborted > scene.feed.sent,
        f"{stands} records, of which {scene.feed.sent} count",
    )


def fault_15_only_markers_left(stage):
    """All that was read has expired, and behind it only the markers of its transactions are left: nothing is lost."""
    scene = stage.scene("f15b", feed=CommittedFeed)
    scene.start()
    scene.send(0.5)
    scene.settle()
    scene.stop()
    # As retention does when every segment with records is over its time.
    everything = [TopicPartition(f"{scene.prefix}.{t}", p, -1) for t in truth.FORMATS for p in range(truth.PARTITIONS)]
    lows = {
        (at.topic, at.partition): done.result(30).low_watermark
        for at, done in stage.broker.admin.delete_records(everything).items()
    }
    stands = {(f"{scene.prefix}.{t}", p): next_ for (t, p), next_ in scene.feed.offsets.items()}
    stage.check(
        "a log begins behind the last record read, by a marker",
        any(lows[at] == next_ + 1 for at, next_ in stands.items()),
        f"{sum(lows[at] > next_ for at, next_ in stands.items())} of {len(stands)} do",
    )
    scene.start()
    scene.finish(restarts=1)


# ---- topics that change under its feet


def fault_16_topic_recreated_while_running(stage):
    """A topic is deleted and made again, with the same offsets for other records, while the service reads it."""
    scene = stage.scene("f16a", broken=240)
    scene.start()
    scene.send(0.4)
    scene.settle()
    before = recreate(stage, scene)
    finish_recreated(stage, scene, before)


def fault_16_topic_recreated_while_stopped(stage):
    """The same while the service is down."""
    scene = stage.scene("f16b", broken=240)
    scene.start()
    scene.send(0.4)
    scene.settle()
    scene.stop()
    before = recreate(stage, scene)
    scene.start()
    finish_recreated(stage, scene, before)


def fault_16_topic_recreated_after_it_was_missed(stage):
    """The same, with time enough for the service to see that the topic is gone."""
    scene = stage.scene("f16c", broken=240, client={"topic.metadata.refresh.interval.ms": "1000"})
    scene.start()
    scene.send(0.4)
    scene.settle()
    left = (len(truth.FORMATS) - 1) * truth.PARTITIONS
    before = recreate(
        stage,
        scene,
        meanwhile=lambda: scene.expect("the partitions of the topic given up", lambda: scene.held() == left, 60),
    )
    scene.await_whole()
    finish_recreated(stage, scene, before)


def fault_16_topic_deleted_for_good(stage):
    """A topic is deleted and stays so: what is read of the others, and what follows from it, goes on."""
    scene = stage.scene("f16d", broken=120, client={"topic.metadata.refresh.interval.ms": "1000"})
    scene.start()
    scene.send(0.4)
    scene.settle()
    name = f"{scene.prefix}.{DAMAGED}"
    stage.broker.admin.delete_topics([name])[name].result(30)
    left = (len(truth.FORMATS) - 1) * truth.PARTITIONS
    scene.expect("the partitions of the topic given up", lambda: scene.held() == left, 60)
    scene.feed.records = (record for record in scene.feed.records if record.topic != DAMAGED)
    scene.finish()


def recreate(stage, scene, meanwhile=lambda: None):
    """Deletes a topic and makes it again; returns the broken records that stood on the first."""
    name = f"{scene.prefix}.{DAMAGED}"
    stage.broker.admin.delete_topics([name])[name].result(30)
    scene.expect("the topic gone", lambda: name not in scene.topics(), 30)
    meanwhile()
    again = lambda: stage.broker.admin.create_topics(
        [NewTopic(name, truth.PARTITIONS, 1, config={"max.message.bytes": "8000000"})]
    )[name].exception(30)
    scene.expect("the topic made again", lambda: again() is None, 30)
    before, scene.feed.broken = scene.feed.broken, []
    scene.feed.offsets = {at: next_ for at, next_ in scene.feed.offsets.items() if at[0] != DAMAGED}
    return before


def finish_recreated(stage, scene, before):
    """As `Scene.finish`, but a supervisor starts the service again where it ends, and two letters may be of one
    offset."""
    scene.send(0.2)
    ended = scene.bellwether.await_end(10)
    if ended is not None:
        stage.note(f"it ends with {ended}, and is started again; it said: {scene.bellwether.log_tail(1)}")
        scene.start()
    scene.await_whole()
    scene.feed.broken += before
    db = scene.catch_up()
    scene.stop()
    present = e2e.check_rows(db, scene.store, scene.verdicts)
    expected = Counter((f"{scene.prefix}.{t}", p, o, value) for t, p, o, _, value, *_ in scene.feed.broken)
    letters = Counter()
    for topic in truth.FORMATS:
        for letter in checks.read_topic(stage.broker.bootstrap, f"{scene.prefix}.{topic}.dlq"):
            headers = {name: value.decode() for name, value in letter.headers()}
            at = [headers[f"__connect.errors.{name}"] for name in ("topic", "partition", "offset")]
            letters[(at[0], int(at[1]), int(at[2]), letter.value() or b"")] += 1
    shown = lambda some: [at[:3] for at in sorted(some)[:5]]
    missing, extra = expected - letters, letters - expected
    stage.check(
        "dead letters are exactly the broken records of both topics",
        not missing and not extra,
        f"{expected.total()} expected, {letters.total()} read, {missing.total()} missing {shown(missing)}, "
        f"{extra.total()} too many {shown(extra)}",
    )
    rows = Counter(db.execute('SELECT topic, partition, "offset" FROM rejected').fetchall())
    wanted = Counter(at[:3] for at in expected.elements())
    stage.check(
        "table `rejected` holds the broken records of both topics",
        rows == wanted,
        f"{wanted.total()} expected, {rows.total()} there, {(wanted - rows).total()} missing, "
        f"{(rows - wanted).total()} too many",
    )
    e2e.check_said(scene.chosen, db, present, scene.through, scene.verdicts)


# ---- records that are gone


def fault_17_retention_passed_while_stopped(stage):
    """Records were deleted before they were read, while the service was down: it must not go on as if nothing were
    lost."""
    scene = stage.scene("f17a")
    scene.start()
    scene.send(0.4)
    scene.settle()
    scene.stop()
    position = scene.feed.offsets[(DAMAGED, 0)]
    scene.send(0.3)
    low = expire(stage, scene, position)
    scene.bellwether.start()
    scene.expect_end(60, f"{scene.prefix}.{DAMAGED}[0]", f"[{position}, {low})")


def fault_17_retention_passed_while_running(stage):
    """The same while it runs and cannot keep up."""
    scene = stage.scene("f17b")
    scene.start()
    scene.send(0.4)
    scene.settle()
    rule = scene.rule(proxy.FETCH, proxy.REQUEST, "hold")
    scene.expect("a fetch on its way", rule.seen.is_set, 30)
    position = scene.feed.offsets[(DAMAGED, 0)]
    scene.send(0.3)
    low = expire(stage, scene, position)
    scene.proxy.lift(rule, proxy.FORWARD)
    scene.expect_end(60, f"{scene.prefix}.{DAMAGED}[0]", f"[{position}, {low})")


def fault_17_deleted_records_are_skipped_where_told(stage):
    """Somebody decides to go on without them: they are counted, and everything else is as if they had never been."""
    scene = stage.scene("f17c")
    scene.start()
    scene.send(0.4)
    scene.settle()
    scene.stop()
    position, note = scene.feed.offsets[(DAMAGED, 0)], scene.feed._note
    doomed = lambda record: (record.topic, record.partition) == (DAMAGED, 0)
    bare = lambda record: record._replace(samples=[], events=[], broken=None)
    scene.feed._note = lambda record: note(bare(record) if doomed(record) else record)
    scene.send(0.3)
    scene.feed._note = note
    at = TopicPartition(f"{scene.prefix}.{DAMAGED}", 0, scene.feed.offsets[(DAMAGED, 0)])
    stage.broker.admin.delete_records([at])[at].result(30)
    scene.bellwether.start()
    scene.expect_end(60, f"[{position}, {at.offset})", "kafka.deleted_unread")
    config = Path(scene.bellwether.command[-1])
    config.write_text(config.read_text().replace("[kafka]", '[kafka]\ndeleted_unread = "skip"'))
    scene.start()
    counted = f'bellwether_records_deleted_unread_total{{input="{scene.prefix}.{DAMAGED}"}} {at.offset - position}'
    page = scene.bellwether.get("/metrics")[1].decode()
    stage.check("what was skipped is counted", counted in page, counted)
    scene.finish(restarts=2)


def expire(stage, scene, position: int) -> int:
    """Deletes half of what is behind a position; returns where the log begins now."""
    at = TopicPartition(f"{scene.prefix}.{DAMAGED}", 0)
    low = position + (scene.feed.offsets[(DAMAGED, 0)] - position) // 2
    at.offset = low
    stage.broker.admin.delete_records([at])[at].result(30)
    return low
