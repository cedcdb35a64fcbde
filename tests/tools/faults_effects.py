"""Faults on the way of the effects: a process that dies or sleeps within a transaction, transactions that do not end as
they should, and acknowledgements that are lost."""

import struct
import time

import proxy

# What the program asks of the broker, and what a test asks in its stead, so as not to wait a minute.
TRANSACTION_TIMEOUT_MS, SHORT_TIMEOUT_MS = 60_000, 4_000


# What the program asks, and what of it only when it starts.
AT_START = {
    "FindCoordinator": proxy.FIND_COORDINATOR,
    "InitProducerId": proxy.INIT_PRODUCER_ID,
    "JoinGroup": proxy.JOIN_GROUP,
    "SyncGroup": proxy.SYNC_GROUP,
    "OffsetFetch": proxy.OFFSET_FETCH,
    "ListOffsets": proxy.LIST_OFFSETS,
    "Metadata": proxy.METADATA,
}
RUNNING = {
    "Fetch": proxy.FETCH,
    "Heartbeat": proxy.HEARTBEAT,
    "Produce": proxy.PRODUCE,
    "AddPartitionsToTxn": proxy.ADD_PARTITIONS_TO_TXN,
    "AddOffsetsToTxn": proxy.ADD_OFFSETS_TO_TXN,
    "TxnOffsetCommit": proxy.TXN_OFFSET_COMMIT,
    "EndTxn": proxy.END_TXN,
}


# ---- a process that dies or sleeps


def fault_01_killed_at_any_step(stage):
    """SIGKILL at requests and answers of every kind, before they arrive: a few of them by the seed, or all."""
    steps = [(kind, side) for kind in AT_START | RUNNING for side in (proxy.REQUEST, proxy.ANSWER)]
    scene = stage.scene("f01", records=20_000 if stage.long else 5000, broken=200)
    scene.rng.shuffle(steps)
    steps = steps if stage.long else steps[:4]
    scene.start()
    scene.send(0.1)
    for kind, side in steps:
        rule = scene.rule((AT_START | RUNNING)[kind], side, "hold")
        if kind in AT_START:
            scene.bellwether.kill()
            scene.bellwether.start()
        for _ in range(150):
            scene.feed.send(10)
            scene.feed.flush()
            if rule.seen.wait(0.2):
                break
        stage.check(f"it was killed at the {side} of {kind}", rule.seen.is_set(), f"{rule.hits} seen")
        scene.bellwether.kill()
        scene.proxy.lift(rule, proxy.DROP)
        scene.bellwether.start()
    stage.note(f"killed at {', '.join(f'the {side} of {kind}' for kind, side in steps)}")
    scene.finish(restarts=scene.bellwether.starts - 1)


def fault_06_stopped_and_continued(stage):
    """SIGSTOP until the group has given it up; a second one is refused by the store's lock; SIGCONT, and it goes on."""
    scene = stage.scene("f06a")
    scene.start()
    scene.send(0.4)
    scene.settle()
    scene.bellwether.pause()
    second = scene.service("store")
    second.start()
    code = second.await_end(30)
    said = second.log_tail()
    stage.check(
        "a second one on the same store is refused, with the folder's name",
        code not in (None, 0) and str(scene.store) in said,
        f"exit code {code}, said: {said.splitlines()[-1]}",
    )
    scene.send(0.3)
    members = lambda: len(stage.broker.admin.describe_consumer_groups([scene.prefix])[scene.prefix].result(30).members)
    scene.expect("the group without the stopped member", lambda: members() == 0, 30)
    scene.bellwether.resume()
    scene.finish()


def fault_06_zombie_in_a_transaction(stage):
    """SIGSTOP with a transaction open; another with the same name and a store of its own takes over; SIGCONT: the first
    must not finish what it began."""
    scene = stage.scene("f06b")
    zombie = scene.bellwether
    scene.start()
    scene.send(0.3)
    scene.settle()
    rule = scene.rule(proxy.END_TXN, proxy.REQUEST, "hold", after=proxy.PRODUCE)
    scene.send_until(rule)
    zombie.pause()
    scene.bellwether, scene.store = scene.service("other"), scene.work / "other"
    scene.start()
    scene.send(0.2)
    scene.settle()
    rule.release(proxy.FORWARD)
    zombie.resume()
    code = zombie.await_end(60)
    stage.check(
        "the first ends, for another took over",
        code not in (None, 0) and "took over" in zombie.log_tail(),
        f"exit code {code}, said: {zombie.log_tail().splitlines()[-1]}",
    )
    # What it took along as it woke comes back.
    scene.await_whole()
    scene.finish()


def fault_09_killed_between_send_offsets_and_end_txn(stage):
    """SIGKILL when all is sent but the end of the transaction: none of it counts, and all of it is said again."""
    scene = killed_at_end_txn(stage, "f09", proxy.REQUEST)
    # The negative control: who reads uncommitted records sees what was said in vain, and said again.
    copies = {level: scene.copies(level) for level in ("read_committed", "read_uncommitted")}
    stage.check(
        "only a reader of uncommitted records sees copies",
        copies["read_committed"] == 0 < copies["read_uncommitted"],
        f"{copies}",
    )


def fault_10_killed_after_end_txn_was_sent(stage):
    """SIGKILL when the end of the transaction is at the broker and its answer is not here: all of it counts, once."""
    scene = killed_at_end_txn(stage, "f10", proxy.ANSWER)
    copies = scene.copies("read_uncommitted")
    stage.check("nothing was said twice, not even in vain", copies == 0, f"{copies} copies")


def killed_at_end_txn(stage, name, frame):
    """Kills the service while the end of a transaction, or its answer, is on its way; plays the scene to its end."""
    scene = stage.scene(name)
    scene.start()
    scene.send(0.2)
    rule = scene.rule(proxy.END_TXN, frame, "hold", after=proxy.PRODUCE)
    scene.send_until(rule)
    scene.bellwether.kill()
    scene.proxy.lift(rule, proxy.DROP)
    scene.start()
    scene.finish(restarts=1)
    return scene


# ---- a transaction that does not end as it should


def fault_11_coordinator_dies_in_a_transaction(stage):
    """The broker is killed between the offsets of a transaction and its end, and comes back."""
    scene = stage.scene("f11")
    scene.start()
    scene.send(0.2)
    rule = scene.rule(proxy.END_TXN, proxy.REQUEST, "hold", after=proxy.PRODUCE)
    scene.send_until(rule)
    stage.broker.kill()
    scene.proxy.lift(rule, proxy.CUT)
    stage.broker.restart()
    back = time.monotonic()
    scene.settle()
    stage.note(f"{time.monotonic() - back:.0f} s after the broker was back, all that was sent is stored and committed")
    scene.finish()


def fault_12_transaction_times_out(stage):
    """The end of a transaction is under way for longer than the broker keeps transactions open. The broker then takes
    the producer for dead and its name as taken: the program may go on or stop loudly, but say nothing twice."""
    scene = stage.scene("f12")
    shorter = lambda frame: frame.replace(
        struct.pack(">i", TRANSACTION_TIMEOUT_MS), struct.pack(">i", SHORT_TIMEOUT_MS)
    )
    hurry = scene.rule(proxy.INIT_PRODUCER_ID, proxy.REQUEST, shorter, times=-1)
    scene.start()
    scene.send(0.2)
    rule = scene.rule(proxy.END_TXN, proxy.REQUEST, "hold", after=proxy.PRODUCE)
    scene.send_until(rule)
    stage.check(
        "the transaction is open",
        hurry.hits and scene.open_transactions(),
        f"the timeout was shortened {hurry.hits} times",
    )
    scene.expect("the broker to end the transaction", lambda: not scene.open_transactions(), 30)
    scene.proxy.lift(rule, proxy.FORWARD)
    scene.feed.send()
    scene.feed.flush()
    restarts = 0
    if (code := scene.bellwether.await_end(8)) is not None:
        stage.check(
            "it stops, loudly",
            code not in (None, 0) and "took over" in scene.bellwether.log_tail(),
            scene.bellwether.log_tail(1),
        )
        stage.note("it ends, and a restart goes on where it was")
        restarts = 1
        scene.start()
    scene.finish(restarts=restarts)
    scene.proxy.lift(hurry)


def fault_28_lost_acknowledgements(stage):
    """The broker does what it is asked and its answer is lost, once for every step of a transaction: with its
    connection, and in the long run also without a word."""
    scene = stage.scene("f28b", records=4000)
    scene.start()
    scene.send(0.1)
    steps = {
        "Produce": proxy.PRODUCE,
        "AddPartitionsToTxn": proxy.ADD_PARTITIONS_TO_TXN,
        "AddOffsetsToTxn": proxy.ADD_OFFSETS_TO_TXN,
        "TxnOffsetCommit": proxy.TXN_OFFSET_COMMIT,
        "EndTxn": proxy.END_TXN,
    }
    for does in (proxy.CUT, proxy.DROP) if stage.long else (proxy.CUT,):
        for name, api in steps.items():
            rule = scene.rule(api, proxy.ANSWER, does)
            scene.send_until(rule, chunk=20)
            scene.proxy.lift(rule)
            stage.check(f"the answer to {name} was lost", rule.hits == 1, f"{rule.hits} times")
            scene.settle()
    scene.finish()
