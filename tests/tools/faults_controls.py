"""Negative controls: the checks fail where a guarantee is taken away on purpose, and the faults are really there."""

from confluent_kafka import Producer

import checks
import e2e
import proxy
from stage import Verdicts


def control_the_oracle_notices_one_record(stage):
    """After a run that is right, the truth or the topics are changed by one record: each time the checks must say
    so."""
    scene = stage.scene("c1")
    scene.start()
    scene.finish()
    feed = scene.feed
    # One that windows count.
    one = feed.names.index("request_duration_seconds")
    sample = feed.names[one], feed.labels[one], feed.ts[one], feed.values[one]
    letter = max(feed.broken, key=lambda broken: len(broken[4]))

    def columns(change):
        for column, value in zip((feed.names, feed.labels, feed.ts, feed.values), sample):
            change(column, value)

    more = lambda: columns(lambda column, value: column.append(value))
    spoilt = [
        ("a sample is missing", more, lambda: columns(lambda c, v: c.pop()), rows, "samples are exactly the good ones"),
        ("a window is not what it should be", more, lambda: columns(lambda c, v: c.pop()), rows, "view "),
        (
            "a sample is too many",
            lambda: columns(lambda c, v: c.pop(one)),
            lambda: columns(lambda c, v: c.insert(one, v)),
            rows,
            "samples are exactly the good ones",
        ),
        (
            "an event is missing",
            lambda: feed.events.append(feed.events[0]),
            feed.events.pop,
            rows,
            "events are exactly the good ones",
        ),
        (
            "a letter is too many",
            lambda: feed.broken.remove(letter),
            lambda: feed.broken.append(letter),
            letters,
            "dead letters are exactly",
        ),
        (
            "a letter is missing",
            lambda: feed.broken.append((*letter[:2], 10**6, *letter[3:])),
            feed.broken.pop,
            letters,
            "dead letters are exactly",
        ),
    ]
    for what, spoil, mend, check, notices in spoilt:
        spoil()
        wrong = failing(scene, check)
        mend()
        stage.check(f"noticed: {what}", any(name.startswith(notices) for name in wrong), f"failing: {wrong}")
    doubled = [
        ("alerts", said, "alerts: each once"),
        ("decisions", said, "decisions: each once"),
        (f"{letter[0]}.dlq", letters, "dead letters are exactly"),
    ]
    for name, check, notices in doubled:
        topic = f"{scene.prefix}.{name}"
        again = checks.read_topic(stage.broker.bootstrap, topic)[0]
        producer = Producer(
            {"bootstrap.servers": stage.broker.bootstrap, "message.max.bytes": 8_000_000, "log_level": 2}
        )
        producer.produce(topic, again.value(), again.key(), headers=again.headers())
        producer.flush(30)
        wrong = failing(scene, check)
        stage.check(
            f"noticed: a record of {name} stands twice",
            any(name.startswith(notices) for name in wrong),
            f"failing: {wrong}",
        )


def failing(scene, check) -> list:
    """Returns the names of the checks that fail now."""
    verdicts = Verdicts()
    db, _ = e2e.expectations(scene.feed, scene.through)
    check(scene, db, verdicts)
    return [name for name, good, _ in verdicts.rows if not good]


def rows(scene, db, verdicts):
    e2e.check_rows(db, scene.store, verdicts)


def letters(scene, _, verdicts):
    checks.check_dead_letters(
        scene.broker.bootstrap, scene.prefix, scene.feed.broken, e2e.SCHEMAS / "dead_letter.schema.json", verdicts
    )


def said(scene, db, verdicts):
    present = checks.open_store(db, scene.store, Verdicts())
    e2e.check_said(scene.chosen, db, present, scene.through, verdicts)


def control_a_lost_acknowledgement_doubles_a_plain_record(stage):
    """The proxy really loses an answer to what was done: a producer without idempotence then writes twice."""
    scene = stage.scene("c2", records=10, broken=1)
    topic = f"{scene.prefix}.events"
    # A first one, unhurt: a topic just made may refuse it once.
    plain = Producer({"bootstrap.servers": stage.broker.bootstrap, "log_level": 2})
    plain.produce(topic, b"first", partition=0)
    plain.flush(30)
    for idempotent, expected in ((False, 3), (True, 4)):
        rule = scene.rule(proxy.PRODUCE, proxy.ANSWER, proxy.CUT)
        producer = Producer(
            {
                "bootstrap.servers": scene.proxy.address,
                "client.id": scene.prefix,
                "enable.idempotence": idempotent,
                "retries": 5,
                "log_level": 2,
            }
        )
        producer.produce(topic, b"once", partition=0)
        producer.flush(30)
        stands = len(checks.read_topic(stage.broker.bootstrap, topic))
        stage.check(
            f"with idempotence {idempotent}, there are {expected} records",
            rule.hits == 1 and stands == expected,
            f"{stands} records, {rule.hits} answers lost",
        )


def control_an_aborted_transaction_shows_to_who_reads_uncommitted(stage):
    """Why readers of effects have to read committed records: a copy in an aborted transaction is a second one
    otherwise."""
    scene = stage.scene("c3", records=400, broken=20)
    scene.start()
    scene.catch_up()
    scene.stop()
    topic = f"{scene.prefix}.metrics.dlq"
    letters = checks.read_topic(stage.broker.bootstrap, topic)
    producer = Producer(
        {
            "bootstrap.servers": stage.broker.bootstrap,
            "transactional.id": scene.prefix,
            "message.max.bytes": 8_000_000,
            "log_level": 2,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for letter in letters:
        producer.produce(topic, letter.value(), letter.key(), headers=letter.headers())
    producer.flush(30)
    producer.abort_transaction(30)
    copies = {level: scene.copies(level) for level in ("read_committed", "read_uncommitted")}
    stage.check(
        "only a reader of uncommitted records sees copies",
        copies == {"read_committed": 0, "read_uncommitted": len(letters)} and letters,
        f"{copies}",
    )
