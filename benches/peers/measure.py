"""Runs one engine once: starts it, watches its output until all of it is there, stops it, and weighs what it took."""

import json
import math
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from records import PARTITIONS

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Metadata and group traffic before the first record stay far below; a fetch of records is far above.
CONSUMING_BYTES = 64 << 10
LOOK_S = 0.05


@dataclass
class Took:
    """What a run took. CPU is user and system of all threads, from the first instruction to the end of the process."""
    cpu_s: float
    # From the first fetch of records until the last row was visible to a reader of committed records.
    wall_s: float
    # From the start of the process until that first fetch; None where so little was fetched that it was not seen, and
    # the wall time begins with the process.
    start_s: float | None
    rss_mib: float
    broker_cpu_s: float


class Failure(Exception):
    """An engine gave up, or gave other rows than it should; no figure of that run counts."""


def once(command: list, cores: str, brokers: str, broker_pid: int, output: str, answer: dict, log: Path,
         seconds: float) -> Took:
    """Runs a command until its output topic holds the answer. Raises Failure where it does not."""
    rows = Rows(brokers, output)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_")}
    environment["BELLWETHER_LOG"] = "warn"
    broker_before = cpu_of(broker_pid)
    started = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(["taskset", "-c", cores, *command], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                   env=environment, cwd=log.parent)
    try:
        first, rss = None, 0.0
        while len(rows.seen) < len(answer):
            if first is None and received(process.pid, brokers) > CONSUMING_BYTES:
                first = time.monotonic()
            rows.read(LOOK_S)
            rss = max(rss, rss_peak_mib(process.pid))
            if process.poll() is not None or time.monotonic() - started > seconds:
                code = process.returncode
                how = f"after {seconds} s" if code is None else f"when the engine had ended with {code}"
                raise Failure(f"expected {len(answer)} rows, saw {len(rows.seen)} {how}\n{tail(log)}")
        last = rows.last
        process.send_signal(signal.SIGTERM)
        usage = wait(process, 60)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    rows.drain()
    compare(rows.seen, rows.twice, answer)
    start_s = None if first is None else first - started
    wall_s = last - started - (start_s or 0.0)
    return Took(usage.ru_utime + usage.ru_stime, wall_s, start_s, rss, cpu_of(broker_pid) - broker_before)


def wait(process: subprocess.Popen, seconds: float):
    """Waits for the end of a process; returns the kernel's account of it, in which nothing it did is missing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        time.sleep(0.01)
    raise Failure(f"the engine did not end within {seconds} s of SIGTERM")


class Rows:
    """Reads the rows of an output topic as a consumer would that must not see what is not committed."""

    def __init__(self, brokers: str, topic: str):
        self.seen, self.twice, self.last, self.topic = {}, 0, time.monotonic(), topic
        self.consumer = Consumer({
            "bootstrap.servers": brokers, "group.id": f"{topic}-reader", "isolation.level": "read_committed",
            "enable.auto.commit": False, "fetch.wait.max.ms": 20, "log_level": 3,
        })
        self.consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])

    def read(self, seconds: float) -> int:
        messages = self.consumer.consume(num_messages=5000, timeout=seconds)
        for message in messages:
            if message.error():
                raise Failure(f"the output topic cannot be read: {message.error()}")
            row = json.loads(message.value())
            if row["service"] == "closing":
                continue
            if message.key().decode() != row["service"]:
                raise Failure(f"expected the key {row['service']}, found {message.key()}")
            key = (millis(row["window_start"]), row["service"])
            self.twice += key in self.seen
            self.seen[key] = (row["n"], row["total"], row["least"], row["most"], row["mean"])
            self.last = time.monotonic()
        return len(messages)

    def drain(self):
        """Reads on to the end of the topic as it is after the engine's end: rows that are there twice show."""
        all_of = [TopicPartition(self.topic, p) for p in range(PARTITIONS)]
        ends = [self.consumer.get_watermark_offsets(p, timeout=10)[1] for p in all_of]
        deadline = time.monotonic() + 30
        while any(at.offset < end for at, end in zip(self.consumer.position(all_of), ends) if end):
            self.read(LOOK_S)
            if time.monotonic() > deadline:
                raise Failure("the end of the output topic was not reached: a transaction is open")
        self.consumer.close()


def compare(seen: dict, twice: int, answer: dict):
    """Row for row, to the last bit."""
    wrong = [f"{key}: expected {answer.get(key)}, found {seen.get(key)}" for key in {*answer, *seen}
             if seen.get(key) != answer.get(key)]
    if wrong or twice:
        raise Failure(f"{len(wrong)} rows differ, {twice} rows came twice; the first:\n" + "\n".join(wrong[:5]))


def compare_check():
    """Shows that the comparison can fail: by one bit, by a row too few, by one too many, by one that came twice."""
    answer = {(0, "a"): (1, 0.5, 0.5, 0.5, 0.5), (60_000, "a"): (2, 3.0, 1.0, 2.0, 1.5)}
    bit = {**answer, (0, "a"): (1, 0.5, 0.5, 0.5, math.nextafter(0.5, 1))}
    few, many = {(0, "a"): answer[0, "a"]}, {**answer, (0, "b"): answer[0, "a"]}
    compare(dict(answer), 0, answer)
    for seen, twice in [(bit, 0), (few, 0), (many, 0), (answer, 1)]:
        try:
            compare(seen, twice, answer)
        except Failure:
            continue
        raise SystemExit("the comparison of rows does not see a difference: no figure would mean anything")


def millis(bound) -> int:
    """A bound of a window, as a number of milliseconds or as text."""
    if isinstance(bound, int):
        return bound
    at = datetime.fromisoformat(bound)
    at = at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at
    return round(at.timestamp() * 1000)


def received(pid: int, brokers: str) -> int:
    """Returns the bytes that a process has received from the broker, by the kernel's count of its connections."""
    port = brokers.rsplit(":", 1)[1]
    told = subprocess.run(["ss", "-tinpH", f"dport = :{port}"], capture_output=True, text=True).stdout
    # One line of addresses and owner, then one of counts.
    mine = [c for c in re.split(r"\n(?=\S)", told) if f"pid={pid}," in c]
    return sum(int(n) for c in mine for n in re.findall(r"bytes_received:(\d+)", c))


def rss_peak_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


def cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICKS_PER_S


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
