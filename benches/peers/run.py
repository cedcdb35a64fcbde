#!/usr/bin/env python3
"""The same windowed query over the same Kafka topic by Bellwether, Flink SQL and Kafka Streams, side by side.

Starts a broker of its own, preloads the topic, runs every engine in turn, compares every row of every run with an
answer computed apart, and only then prints what each took. README.md says what was chosen and why.
"""

import argparse
import csv
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import engines
import measure
import records

ROOT = Path(__file__).resolve().parents[2]
KAFKA = ROOT / "tests/tools/kafka.sh"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bellwether", required=True, metavar="PATH", help="the program, of a release build")
    parser.add_argument("--records", default="2000000,10000000", help="sizes (default %(default)s)")
    parser.add_argument("--shapes", default="tumble,hop", help="windows: tumble (1 min), hop (5 min by 1 min)")
    parser.add_argument("--engines", default="bellwether,flink/exactly,flink/atleast,streams/exactly,streams/atleast")
    parser.add_argument("--runs", type=int, default=3, help="of each (default %(default)s)")
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=10, help="of each service; each has two series")
    parser.add_argument("--per-minute", type=int, default=50_000, help="records in a minute of event time")
    parser.add_argument("--cores", default=cores_default(), help="cores of the engines (default: all)")
    parser.add_argument("--broker-cores", help="cores of the broker (default: those left, else the same)")
    parser.add_argument("--heap", default="2g", help="of each JVM that is measured (default %(default)s)")
    parser.add_argument("--jvm", default="-XX:+UseSerialGC", metavar="FLAGS", help="more of them (default %(default)s)")
    parser.add_argument("--compression", default="lz4", help="of the preloaded topic")
    parser.add_argument("--flink-set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Flink")
    parser.add_argument("--streams-set", action="append", default=[], metavar="KEY=VALUE", help="one of Kafka Streams")
    parser.add_argument("--seconds-max", type=float, default=900, help="longest a run may take")
    parser.add_argument("--out", type=Path, help="write every run into this CSV file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there and leave configurations and logs")
    parser.add_argument("--explain", action="store_true", help="print Flink's plans and end")
    return parser.parse_args()


def cores_default() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def core_set(text: str) -> set:
    parts = [part.split("-") for part in text.split(",")]
    return {core for part in parts for core in range(int(part[0]), int(part[-1]) + 1)}


class Broker:
    """A Kafka of our own, through the script the tests use."""

    def __init__(self, folder: Path, cores: str):
        self.folder = folder
        self.call("start", "--set", "log.segment.bytes=1073741824")
        lines = dict(line.removeprefix("export ").split("=", 1) for line in self.call("env").splitlines())
        self.address, self.pid = lines["BW_KAFKA"], int(lines["BW_KAFKA_PID"])
        subprocess.run(["taskset", "-a", "-c", "-p", cores, str(self.pid)], check=True, stdout=subprocess.DEVNULL)

    def call(self, *words) -> str:
        done = subprocess.run([str(KAFKA), *words, "--dir", str(self.folder)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"kafka.sh {words[0]} failed")
        return done.stdout

    def remove(self):
        self.call("remove")


def measure_all(chosen, broker: Broker, work: Path, wanted: list) -> list:
    """Runs everything; returns a dictionary for each run. Engines take turns, so that a slow minute of the machine
    does not fall on one of them alone."""
    taken = []
    # One record: what starting, waiting for the last commit and stopping cost without the work.
    for count in [1, *sizes(chosen)]:
        made = records.Records(count, chosen.services, chosen.replicas, chosen.per_minute)
        made.preload(broker.address, f"peers.in.{count}", chosen.compression)
        for shape in chosen.shapes.split(","):
            answer = made.answer(shape)
            for number in range(chosen.runs):
                for engine in rotated(wanted, number):
                    took = one(chosen, broker, work, engine, made, shape, answer, number)
                    taken.append({"records": count, "shape": shape, "engine": engine.name, "run": number,
                                  "rows": len(answer), **vars(took)})
        records.delete_topics(broker.address, f"peers.in.{count}")
    return taken


def sizes(chosen) -> list:
    return sorted({int(count) for count in chosen.records.split(",")} - {1})


def rotated(wanted: list, by: int) -> list:
    by %= len(wanted)
    return wanted[by:] + wanted[:by]


def one(chosen, broker: Broker, work: Path, engine, made, shape: str, answer: dict, number: int) -> measure.Took:
    name = f"peers.{engine.name.replace('/', '-')}.{shape}.{made.count}.{number}"
    folder = work / name
    folder.mkdir()
    output = f"{name}.out"
    records.make_topics(broker.address, [output], records.PARTITIONS)
    run = engines.Run(broker.address, made.topic, output, name, shape, folder, len(core_set(chosen.cores)), chosen.heap)
    log = folder / "log"
    try:
        took = measure.once(engine.command(run), chosen.cores, broker.address, broker.pid, output, answer, log,
                            chosen.seconds_max)
        if engine.name == "bellwether":
            check_store(folder / "store", made.count + records.PARTITIONS)
    except measure.Failure as failure:
        raise SystemExit(f"{engine.name}, {shape}, {made.count} records, run {number}: {failure}")
    records.delete_topics(broker.address, name)
    for heavy in ("store", "state", "checkpoints"):
        shutil.rmtree(folder / heavy, ignore_errors=True)
    before = "start included" if took.start_s is None else f"{took.start_s:5.2f} s before"
    print(f"{engine.name:<16} {shape:<7} {made.count:>10} records: {took.cpu_s:7.2f} s CPU, {took.wall_s:6.2f} s wall, "
          f"{before}, {took.rss_mib:5.0f} MiB; {len(answer)} rows equal", flush=True)
    return took


def check_store(store: Path, expected: int):
    """Bellwether's work is done only when every sample is in its store as well."""
    import deltalake
    found = deltalake.DeltaTable(store / "samples").to_pyarrow_dataset().count_rows()
    if found != expected:
        raise measure.Failure(f"expected {expected} samples in the store, found {found}")


def report(chosen, taken: list, wanted: list):
    for shape in chosen.shapes.split(","):
        width, slide = records.WINDOWS[shape]
        print(f"\n{shape}: windows of {width} s every {slide} s; medians of {chosen.runs} runs [least .. most]")
        runs = {(t["records"], t["engine"]): [] for t in taken}
        for t in taken:
            if t["shape"] == shape:
                runs[t["records"], t["engine"]].append(t)
        startup = {e.name: median(runs[1, e.name], "cpu_s") for e in wanted}
        for count in sizes(chosen):
            table(count, {e.name: runs[count, e.name] for e in wanted}, startup)
        marginal(sizes(chosen), runs, [e.name for e in wanted])


def median(runs: list, column: str) -> float:
    return statistics.median(run[column] for run in runs)


def table(count: int, runs: dict, startup: dict):
    rows = next(iter(runs.values()))[0]["rows"]
    print(f"\n{count:,} records, {rows:,} rows")
    print(f"{'engine':<16} {'CPU s per million':>23} {'ratio':>6} {'startup CPU s':>14} {'ratio with it':>14} "
          f"{'wall s':>23} {'records/s':>10} {'RSS MiB':>8} {'broker CPU s':>13}")
    net = {name: [(t["cpu_s"] - startup[name]) * 1e6 / count for t in all_of] for name, all_of in runs.items()}
    whole = {name: median(all_of, "cpu_s") for name, all_of in runs.items()}
    for name, all_of in runs.items():
        walls = [t["wall_s"] for t in all_of]
        print(f"{name:<16} {spread(net[name]):>23} {ratio(net, name, statistics.median):>6} {startup[name]:>14.2f} "
              f"{ratio(whole, name, float):>14} {spread(walls):>23} {count / statistics.median(walls):>10,.0f} "
              f"{max(t['rss_mib'] for t in all_of):>8.0f} {median(all_of, 'broker_cpu_s'):>13.2f}")


def marginal(counts: list, runs: dict, names: list):
    """What each further million costs between the least and the most records: startup and warming up cancel out."""
    if len(counts) < 2:
        return
    low, high = counts[0], counts[-1]
    rise = lambda name: median(runs[high, name], "cpu_s") - median(runs[low, name], "cpu_s")
    each = {name: rise(name) * 1e6 / (high - low) for name in names}
    print(f"\nCPU s for each further million, {low:,} to {high:,} records: startup and warming up cancel out")
    for name in names:
        print(f"{name:<16} {each[name]:>8.2f} {ratio(each, name, float):>6}")


def spread(values: list) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f} .. {max(values):.2f}]"


def ratio(figures: dict, name: str, of) -> str:
    return f"{of(figures[name]) / of(figures['bellwether']):.1f}x" if "bellwether" in figures else "-"


def machine() -> str:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.splitlines()[1]
    return f"{os.cpu_count()} x {cpu}, {memory:.0f} GiB, Linux {platform.release()}; {java}"


def head(chosen, wanted: list):
    said = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    print(time.strftime("%Y-%m-%d"), machine())
    print(f"repository at {said.stdout.strip()}; {'; '.join(dict.fromkeys(e.version() for e in wanted))}")
    print(f"{records.PARTITIONS} partitions ({chosen.compression}), {chosen.services} services, {chosen.replicas} "
          f"replicas each, {chosen.per_minute:,} records a minute of event time")
    print(f"engines on cores {chosen.cores}, broker on {chosen.broker_cores}; "
          f"JVMs -Xms{chosen.heap} -Xmx{chosen.heap} {chosen.jvm}", flush=True)


def engines_of(chosen) -> list:
    known = {e.name: e for e in [
        engines.Bellwether(os.path.abspath(chosen.bellwether)),
        *(engines.Flink(g, chosen.flink_set, chosen.jvm) for g in ("exactly-once", "at-least-once")),
        *(engines.Streams(g, chosen.streams_set, chosen.jvm) for g in ("exactly-once", "at-least-once")),
    ]}
    names = chosen.engines.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"expected engines of {', '.join(known)}; found {', '.join(unknown)}")
    return [known[name] for name in names]


def explain(chosen, work: Path):
    for shape in chosen.shapes.split(","):
        run = engines.Run("localhost:9", "in", "out", "group", shape, work, len(core_set(chosen.cores)), chosen.heap)
        flink = engines.Flink("exactly-once", chosen.flink_set, chosen.jvm)
        subprocess.run(flink.command(run, explain=True), check=True)


def main():
    chosen = arguments()
    # As Ctrl-C does: the broker is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    left = core_set(cores_default()) - core_set(chosen.cores)
    chosen.broker_cores = chosen.broker_cores or ",".join(map(str, sorted(left))) or chosen.cores
    work = (chosen.keep or Path(tempfile.mkdtemp(prefix="bellwether-peers-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise SystemExit(f"expected {work} to be empty: every run makes a folder of its own there")
    broker = None
    try:
        if chosen.explain:
            return explain(chosen, work)
        measure.compare_check()
        wanted = engines_of(chosen)
        head(chosen, wanted)
        broker = Broker(work / "kafka", chosen.broker_cores)
        taken = measure_all(chosen, broker, work, wanted)
        report(chosen, taken, wanted)
        if chosen.out:
            with open(chosen.out, "w", newline="") as out:
                writer = csv.DictWriter(out, taken[0].keys())
                writer.writeheader()
                writer.writerows(taken)
    finally:
        if broker:
            broker.remove()
        if not chosen.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
