"""The engines that are measured: how each is fetched, built and started for one run. Measures nothing.

Every choice that makes an engine faster or slower stands here; README.md says why it is so.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from records import CLOSING_S, LATENESS_S, NAME, WINDOWS

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("BW_CACHE") or Path.home() / ".cache/bellwether")
# What Flink's own start scripts open on Java 17.
OPENED = ["lang", "lang.reflect", "net", "io", "nio", "text", "time", "util", "util.concurrent",
          "util.concurrent.atomic", "util.concurrent.locks"]


@dataclass
class Run:
    """One run of one engine: where it reads, writes and works."""
    brokers: str
    input: str
    output: str
    group: str
    shape: str
    folder: Path
    cores: int
    heap: str


class Bellwether:
    name = "bellwether"

    def __init__(self, program: str):
        self.program = program

    def version(self) -> str:
        return subprocess.run([self.program, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def command(self, run: Run) -> list:
        width, slide = WINDOWS[run.shape]
        window = f"tumble(ts, INTERVAL '{width} seconds')"
        if slide != width:
            window = f"hop(ts, INTERVAL '{slide} seconds', INTERVAL '{width} seconds')"
        for folder in ("views", "rules"):
            (run.folder / folder).mkdir()
        fill(HERE / "bellwether/view.sql", run.folder / "views/window_stats.sql", output=run.output, name=NAME,
             lateness_s=LATENESS_S, window=window)
        config = run.folder / "bellwether.toml"
        fill(HERE / "bellwether/bellwether.toml", config, brokers=run.brokers, group=run.group, input=run.input,
             folder=run.folder)
        return [self.program, "run", "--config", str(config)]


class Flink:
    def __init__(self, guarantee: str, settings: list, jvm: str):
        self.guarantee, self.settings, self.jvm = guarantee, settings, jvm
        self.name = f"flink/{short(guarantee)}"

    def version(self) -> str:
        jars = java("flink").jars
        return f"Flink {jar_version(jars, 'flink-runtime')}, connector {jar_version(jars, 'flink-connector-kafka')}"

    def command(self, run: Run, explain: bool = False) -> list:
        # Minutes: Flink's SQL takes at most two digits of seconds.
        width, slide = (seconds // 60 for seconds in WINDOWS[run.shape])
        window = f"TUMBLE(TABLE wanted, DESCRIPTOR(event_time), INTERVAL '{width}' MINUTE)"
        if slide != width:
            window = f"HOP(TABLE wanted, DESCRIPTOR(event_time), INTERVAL '{slide}' MINUTE, INTERVAL '{width}' MINUTE)"
        query = run.folder / "query.sql"
        fill(HERE / "flink/query.sql", query, brokers=run.brokers, group=run.group, input=run.input, output=run.output,
             guarantee=self.guarantee, name=NAME, lateness_s=LATENESS_S, window=window)
        settings = {
            "parallelism.default": run.cores,
            "table.local-time-zone": "UTC",
            "pipeline.object-reuse": "true",
            "execution.checkpointing.interval": "10 s",
            "execution.checkpointing.mode": self.guarantee.upper().replace("-", "_"),
            "execution.checkpointing.dir": f"file://{run.folder}/checkpoints",
            "state.backend.type": "hashmap",
            **dict(pair.split("=", 1) for pair in self.settings),
        }
        opened = [word for part in OPENED for word in ("--add-opens", f"java.base/java.{part}=ALL-UNNAMED")]
        return [*java("flink").start(run.heap, self.jvm), *opened, "WindowJob", *(["EXPLAIN"] if explain else []),
                str(query), *(f"{k}={v}" for k, v in settings.items())]


class Streams:
    def __init__(self, guarantee: str, settings: list, jvm: str):
        self.guarantee, self.settings, self.jvm = guarantee, settings, jvm
        self.name = f"streams/{short(guarantee)}"

    def version(self) -> str:
        return f"Kafka Streams {jar_version(java('streams').jars, 'kafka-streams')}"

    def command(self, run: Run) -> list:
        width, slide = WINDOWS[run.shape]
        settings = {
            "application.id": run.group,
            "bootstrap.servers": run.brokers,
            "state.dir": run.folder / "state",
            "num.stream.threads": run.cores,
            "processing.guarantee": "exactly_once_v2" if self.guarantee == "exactly-once" else "at_least_once",
            "auto.offset.reset": "earliest",
            "replication.factor": 1,
            "topology.optimization": "all",
            "statestore.cache.max.bytes": 64 << 20,
            "buffered.records.per.partition": 20_000,
            "consumer.max.poll.records": 20_000,
            # librdkafka, which Bellwether reads with, does not check them either unless told to.
            "consumer.check.crcs": "false",
            "consumer.max.partition.fetch.bytes": 4 << 20,
            "producer.compression.type": "lz4",
            "producer.batch.size": 262_144,
            "__emit.interval.ms.kstreams.windowed.aggregation__": 0,
            "peers.input": run.input, "peers.output": run.output, "peers.name": NAME,
            "peers.width_s": width, "peers.slide_s": slide, "peers.lateness_s": LATENESS_S,
            # The store drops what is older than this before the record that closes a window makes its row: it must be
            # more than the farthest jump of event time, or rows are lost.
            "peers.kept_s": width + LATENESS_S + 2 * CLOSING_S,
            "peers.emit": "close", "peers.store": "memory", "peers.cache": "on",
            **dict(pair.split("=", 1) for pair in self.settings),
        }
        return [*java("streams").start(run.heap, self.jvm), "WindowApp", *(f"{k}={v}" for k, v in settings.items())]


@dataclass
class Java:
    """A program of ours in Java: its jars from Maven Central, and its classes."""
    jars: Path
    classes: Path

    def start(self, heap: str, jvm: str) -> list:
        return ["java", f"-Xms{heap}", f"-Xmx{heap}", *jvm.split(), "-Djava.awt.headless=true",
                f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}", "-cp", f"{self.classes}:{self.jars}/*"]


def java(which: str) -> Java:
    """Fetches and compiles what is not in the cache yet; folders are named after what they are made from."""
    pom, sources = HERE / which / "pom.xml", sorted((HERE / which).glob("*.java"))
    jars = CACHE / f"{which}-{digest([pom])}"
    classes = CACHE / f"{which}-classes-{digest([pom, *sources])}"
    whole(jars, ["mvn", "-B", "-q", "-ntp", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime",
                 "-DoutputDirectory={into}"])
    whole(classes, ["javac", "-d", "{into}", "-cp", f"{jars}/*", *map(str, sources)])
    return Java(jars, classes)


def whole(folder: Path, command: list):
    """Fills a folder by a command, where it is not there; one that was left half done is not taken for it."""
    if folder.exists():
        return
    if not shutil.which(command[0]):
        raise SystemExit(f"expected {command[0]} on PATH, found none; type:\n"
                         "    sudo apt-get install -y maven default-jdk-headless")
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    done = subprocess.run([word.format(into=part) for word in command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        shutil.rmtree(part)
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}")
    part.rename(folder)


def digest(files: list) -> str:
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def jar_version(jars: Path, artifact: str) -> str:
    return next(jars.glob(f"{artifact}-[0-9]*.jar")).stem.removeprefix(f"{artifact}-")


def short(guarantee: str) -> str:
    return {"exactly-once": "exactly", "at-least-once": "atleast"}[guarantee]


def fill(template: Path, into: Path, **values):
    text = template.read_text()
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    into.write_text(text)
