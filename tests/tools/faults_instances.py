"""Several instances of one group: some come, some go, some die or freeze while records come in. All of them together say
what one alone would have said."""

import re
import time
from pathlib import Path

import checks
import service
import stage as stages

# Long enough for a member that died to be missed, and for its share to be read again.
REBALANCE_S_MAX = 60


def instances_01_come_and_go_under_load(stage):
    """Instances are added, and stopped as an operator would; the work of closing windows moves with the first."""
    group = Group(stage, "i01", records=16_000)
    group.load_until(500, per_second=700)
    group.start(1)
    group.start(2)
    group.stop(0)
    group.await_finisher_among(1, 2)
    group.start(0)
    group.stop(group.finisher())
    group.finish()


def instances_02_die_under_load(stage):
    """Instances are killed, each once, and started again: first the one that closes windows."""
    group = Group(stage, "i02", records=16_000)
    group.start(1)
    group.start(2)
    group.load_until(500, per_second=600)
    for number in [group.finisher(), *range(3)]:
        group.kill(number)
        group.await_finisher_among(*(other for other in range(3) if other != number))
        group.start(number)
    group.finish()


def instances_03_freeze_under_load(stage):
    """An instance stands still for longer than the group waits for it, and then goes on as if nothing had been."""
    group = Group(stage, "i03", records=16_000)
    group.start(1)
    group.load_until(500, per_second=600)
    for _ in range(2):
        frozen = group.finisher()
        group.services[frozen].pause()
        group.await_finisher_among(1 - frozen)
        group.services[frozen].resume()
        # It may have had rows in hand that are the other's by now; then it ends, and says so.
        group.await_part_or_end(frozen)
    group.finish()


def instances_04_wait_for_no_partition_that_is_silent(stage):
    """A topic that nobody writes to is read by one instance and the windows are closed by another: they have to agree on
    how far to wait."""
    # Longer than a busy machine keeps the producer from a partition: what comes after that is late by right.
    group = Group(stage, "i04", records=6000, more='[stream]\nidle_timeout = "8s"\n', silent=True)
    group.start(1)
    group.load_until(500, per_second=700)
    group.finish()


def instances_05_one_becomes_two(stage):
    """What one instance alone left open is gathered again by two that share the work."""
    group = Group(stage, "i05", records=12_000, alone=True)
    group.load_until(500, per_second=600)
    group.stop(0)
    group.share()
    group.start(0)
    group.start(1)
    group.finish()


def instances_06_broker_away_under_load(stage):
    """The broker dies under all of them and comes back: what was on its way must not keep any of them from going on."""
    # The members are missed later than the instances stop reading for what they cannot send.
    group = Group(stage, "i06", records=14_000, client={"session.timeout.ms": "8000"})
    group.start(1)
    group.load_until(500, per_second=400)
    stage.kill_broker()
    time.sleep(12)  # The fault itself, longer than the group waits for a member.
    stage.broker.restart()
    group.finish()


class Group:
    """Three instances of one group on one store, of which the first is running. `silent`: they read one more topic, which
    holds nothing. `alone`: the first does everything, until they `share`."""

    def __init__(self, stage, name: str, records: int, more=stages.AWAKE, silent=False, alone=False, client=None):
        self.stage, self.scene = stage, stage.scene(name, records=records, more=more, client=client)
        inputs = ""
        if silent:
            topic = f"{self.scene.prefix}.silent"
            stage.broker.admin.create_topics([stages.NewTopic(topic, 2, 1)])[topic].result(30)
            inputs = f'[[inputs]]\ntopic = "{topic}"\nformat = "json_metrics"\n'
        self.services = [self.scene.bellwether, self.scene.service("store"), self.scene.service("store")]
        self.configure("", inputs)
        if not alone:
            self.share()
        self.scene.start()

    def configure(self, kafka: str, inputs: str):
        """Puts more into the sections of every instance."""
        for one in self.services:
            path = Path(one.command[-1])
            text = path.read_text().replace("[kafka]\n", f"[kafka]\n{kafka}")
            path.write_text(text.replace("[store]\n", f"{inputs}[store]\n"))

    def share(self):
        self.configure(f'partials_topic = "{self.scene.prefix}.partials"\n', "")
        for number, one in enumerate(self.services):
            path = Path(one.command[-1])
            path.write_text(path.read_text().replace('instance = "', f'instance = "{number}-'))

    def load_until(self, rows: int, per_second: int):
        self.scene.load(per_second)
        self.scene.expect("rows in the store", lambda: checks.rows_of(self.scene.store, "samples") > rows, 30)

    # ---- what the instances say

    def said(self, number: int, words: str) -> int:
        """Returns how often an instance has said something since its last start."""
        return self.services[number].log_tail(100_000).rsplit("--- start", 1)[-1].count(words)

    def closes(self, number: int) -> bool:
        """Tells whether an instance says that it closes the windows."""
        if not self.services[number].alive():
            return False
        tail = self.services[number].log_tail(100_000).rsplit("--- start", 1)[-1]
        turns = re.findall(r"(this|another) instance closes the windows now|instance (starts anew)", tail)
        turns = ["".join(turn) for turn in turns]
        return bool(turns) and turns[-1] == "this"

    def finisher(self) -> int:
        found = []
        self.expect("an instance that closes windows", lambda: found or found.extend(self.finishers()), REBALANCE_S_MAX)
        return found[0]

    def finishers(self) -> list:
        return [number for number in range(len(self.services)) if self.closes(number)]

    def await_finisher_among(self, *numbers: int):
        self.expect(
            f"one of {numbers} closes windows", lambda: any(self.closes(number) for number in numbers), REBALANCE_S_MAX
        )

    def await_part_or_end(self, number: int):
        one = self.services[number]
        before = self.said(number, "kafka partitions assigned")

        def goes_on():
            return not one.alive() or self.said(number, "kafka partitions assigned") > before

        self.expect(f"instance {number} has a part of the work again, or ends", goes_on, REBALANCE_S_MAX)
        if not one.alive():
            code = one.await_end(1)
            self.stage.note(f"instance {number} ended with exit code {code}: {one.log_tail(1)[:300]}")
            self.start(number)

    # ---- acting

    def start(self, number: int):
        one = self.services[number]
        one.start()
        self.expect(f"instance {number} is ready", lambda: one.ready() or not one.alive(), REBALANCE_S_MAX)
        begun = lambda: self.said(number, "reading begins") or not one.alive()
        self.expect(f"instance {number} has a part of the work", begun, REBALANCE_S_MAX)
        if not one.alive():
            raise RuntimeError(f"instance {number} ended by itself; it said: {one.log_tail(3)}")

    def stop(self, number: int):
        code = self.services[number].stop(60)
        self.stage.check(f"instance {number} ends cleanly", code == 0, f"exit code {code}; {self.services[number].log_tail(1)}")
        self.lean()

    def kill(self, number: int):
        self.services[number].kill()
        self.lean()

    def lean(self):
        """Lets the scene look at an instance that is alive."""
        self.scene.bellwether = next((one for one in self.services if one.alive()), self.scene.bellwether)

    def expect(self, what: str, condition, seconds: float):
        if not service.wait_until(condition, seconds):
            tails = "\n".join(f"{n}: {one.log_tail(4)}" for n, one in enumerate(self.services))
            raise RuntimeError(f"expected within {seconds:.0f} s: {what}; the ends of the logs:\n{tails}")

    def finish(self):
        """Sends the rest, waits until all is there, stops the instances, and compares everything with the truth."""
        db = self.scene.catch_up()
        for number, one in enumerate(self.services):
            if one.alive():
                self.stop(number)
        taken = [one.log_tail(100_000).count("reading begins") for one in self.services if one.starts]
        self.stage.check("every instance had a part of the work", len(taken) > 1 and all(taken), f"assignments: {taken}")
        stages.e2e.check_all(
            self.scene.chosen, self.scene.feed, db, self.scene.store, self.scene.through, self.stage.verdicts
        )
