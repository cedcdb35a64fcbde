#!/usr/bin/env python3
"""`bellwether import` on every format, against what other readers find in the files and in the tables.

usage: imports.py --binary PATH [--rows N] [--seed N] [--keep DIR]

Seeded samples of five days, out of order by days, some lines broken: written as Prometheus text, OpenMetrics, line protocol,
JSON, CSV and Parquet, packed or not; imported, imported again, killed on the way, and beside a running service that writes the
same series. What is in the store afterwards is read with deltalake and DuckDB. Every check is named and printed; exit code 1
where one fails.
"""

import argparse
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from checks import Verdicts
from service import free_port, wait_until

DAY_S = 86_400
DAYS = 5
DEADLINE_S = 240
# The demo's own time begins later.
OLD = "ts < TIMESTAMPTZ '2026-01-01T00:00:00Z'"
BROKEN = {"prom": "up{a=\"b 1 2", "om": "up one 1772366400", "lp": "up,a value=1 1", "jsonl": "{\"name\":", "csv": "yesterday,a,b,1"}


class Store:
    """What other readers find in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def ask(self, sql: str) -> list:
        connection = duckdb.connect()
        for name in ("samples", "series", "rejected"):
            connection.register(name, DeltaTable(str(self.folder / name)).to_pyarrow_dataset())
        return connection.execute(sql).fetchall()

    def by_metric(self, like: str) -> dict:
        """Returns of each metric: rows, series, the sum of values, the oldest and newest time in seconds."""
        rows = self.ask(
            "SELECT r.name, count(*), count(DISTINCT series_id), sum(value), epoch(min(ts)), epoch(max(ts)) "
            f"FROM samples JOIN series r USING (series_id) WHERE r.name LIKE '{like}' GROUP BY 1"
        )
        return {name: tuple(rest) for name, *rest in rows}


def samples(seed: int, count: int, now: int):
    """Yields (host, seconds, value): whole seconds and values that every format can say, days in any order."""
    rng = random.Random(seed)
    days = list(range(DAYS))
    rng.shuffle(days)
    for day in days:
        for at in range(count // DAYS):
            second = now - (day + 1) * DAY_S + at % DAY_S
            yield f"h{at % 7}", second, rng.randrange(1_000_000) / 4


def write(path: Path, lines):
    text = "".join(line + "\n" for line in lines)
    with (gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w")) as file:
        file.write(text)


def files(folder: Path, count: int, seed: int, now: int):
    """Writes a file of each format; returns [(path, metric, broken lines, truth)]."""
    made = []

    def truth(rows):
        return len(rows), len({host for host, _, _ in rows}), sum(v for _, _, v in rows), min(s for _, s, _ in rows), max(s for _, s, _ in rows)

    def keep(path, metric, lines, broken, rows):
        rng = random.Random(seed + 1)
        lines = list(lines)
        for _ in range(broken):
            lines.insert(rng.randrange(1, len(lines)), BROKEN[metric.removeprefix("of_")])
        if metric == "of_om":
            lines.append("# EOF")
        write(path, lines)
        made.append((path, metric, broken, truth(rows)))

    rows = list(samples(seed, count, now))
    of = {kind: [f"of_{kind}{{host=\"{h}\"}} {v} " for h, _, v in rows] for kind in ("prom", "om")}
    keep(folder / "a.prom.gz", "of_prom", ["# TYPE of_prom gauge"] + [f"{head}{s * 1000}" for head, (_, s, _) in zip(of["prom"], rows)], 3, rows)
    keep(folder / "b.om", "of_om", ["# TYPE of_om gauge"] + [f"{head}{s}" for head, (_, s, _) in zip(of["om"], rows)], 2, rows)
    keep(folder / "c.lp", "of_lp", [f"of_lp,host={h} value={v} {s}000000000" for h, s, v in rows], 4, rows)
    keep(
        folder / "d.jsonl", "of_jsonl",
        [json.dumps({"ts": s, "name": "of_jsonl", "labels": {"host": h}, "value": v}) for h, s, v in rows], 2, rows,
    )
    iso = lambda s: datetime.fromtimestamp(s, timezone.utc).isoformat().replace("+00:00", "Z")
    keep(folder / "e.csv", "of_csv", ["time,name,host,value"] + [f"{iso(s)},of_csv,{h},{v}" for h, s, v in rows], 5, rows)
    table = pa.table({
        "ts": pa.array([s * 1_000_000_000 for _, s, _ in rows], pa.timestamp("ns")),
        "host": [h for h, _, _ in rows],
        "of_parquet": [v for _, _, v in rows],
    })
    pq.write_table(table, folder / "f.parquet")
    made.append((folder / "f.parquet", "of_parquet", 0, truth(rows)))
    return made


class Tool:
    def __init__(self, binary: str):
        self.binary = binary
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_")}

    def run(self, *arguments, stdin: bytes = b""):
        """Returns (exit code, what it said, what it complained of)."""
        command = [self.binary, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, input=stdin, env=self.environment, timeout=DEADLINE_S)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def start(self, *arguments, stdin=subprocess.DEVNULL):
        command = [self.binary, *map(str, arguments)]
        return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment, text=True)


def formats(tool: Tool, folder: Path, made: list, verdicts: Verdicts) -> Path:
    """Every format, in one go."""
    data = folder / "data"
    paths = [path for path, *_ in made]
    code, said, complained = tool.run("import", *paths, "--data", data)
    verdicts.add("a dry run tells and writes nothing", *dry(tool, folder, made))
    verdicts.add("all files of all formats are taken", code == 0, f"exit code {code}: {(said + complained)[-300:]}")
    store = Store(data)
    found = store.by_metric("of%")
    for path, metric, broken, truth in made:
        verdicts.add(f"{path.name}: rows, series, sum and times", found.get(metric) == truth, f"{found.get(metric)} of {truth}")
        refused = store.ask(f"SELECT count(*), count(DISTINCT \"offset\"), count(value) FROM rejected WHERE topic = 'import/{path.name}'")
        verdicts.add(f"{path.name}: broken lines are in rejected, with line and text", refused == [(broken,) * 3], str(refused))
    code, said, _ = tool.run("import", *paths, "--data", data)
    same = store.by_metric("of%") == found
    verdicts.add("imported again, nothing is there twice", same and said.count("imported before") == len(paths), said.splitlines()[0])
    code, _, _ = tool.run("import", paths[-1], "--data", data, "--again")
    doubled = store.by_metric("of_parquet")["of_parquet"][0] == 2 * found["of_parquet"][0]
    verdicts.add("control: without knowing the file it would be", code == 0 and doubled, "--again")
    return data


def dry(tool: Tool, folder: Path, made: list):
    data = folder / "dry"
    code, said, _ = tool.run("import", made[0][0], "--data", data, "--dry-run")
    return code == 0 and f"{made[0][3][0]:,} rows" in said and not data.exists(), said.strip()


def compacted(tool: Tool, data: Path, verdicts: Verdicts):
    store = Store(data)
    before, files_before = store.by_metric("%"), len(DeltaTable(str(data / "samples")).file_uris())
    code, said, complained = tool.run("store", "compact", "--data", data)
    files = len(DeltaTable(str(data / "samples")).file_uris())
    good = code == 0 and store.by_metric("%") == before and files <= DAYS + 1 < files_before
    verdicts.add("compacted, the same rows are in a file a day", good, f"{files_before} files, then {files}; {said.strip()}{complained}")
    code, said, _ = tool.run("store", "verify", "--data", data)
    verdicts.add("the store is sound", code == 0, said.strip())


def wrong(tool: Tool, folder: Path, verdicts: Verdicts):
    """What cannot be imported is told, with what to do."""
    (folder / "x.bin").write_text("x")
    (folder / "no_time.csv").write_text("when,value\n1,2\n")
    (folder / "quote.csv").write_text("ts,name,value\n2026-03-01,a,1\n2026-03-01,\"a,1\n" + "2026-03-01,a,1\n" * 600_000)
    (folder / "cut.prom.gz").write_bytes(gzip.compress(b"up 1 1772366400\n" * 100_000)[:100])
    (folder / "bad.prom").write_text("up 1 1772366400\nup one\n")
    (folder / "many.prom").write_text("".join(f"up{{n=\"{n}\"}} 1 1772366400\n" for n in range(20)))
    (folder / "few.toml").write_text("[limits]\nseries_max = 10\n")
    data = folder / "wrong"
    cases = [
        ("a file that is not there", ["nowhere.prom"], "failed to read nowhere.prom"),
        ("a name that tells nothing", ["x.bin"], "hint: add --format"),
        ("a table without a time", ["no_time.csv"], "--time COLUMN"),
        ("a quote that is not closed", ["quote.csv"], "is a quote not closed?"),
        ("a file that was cut off", ["cut.prom.gz"], "failed to import cut.prom.gz"),
        ("more series than are allowed", ["many.prom"], "hint: raise it"),
        ("--strict at a broken line", ["bad.prom", "--strict"], "line 2: column"),
    ]
    for name, arguments, expected in cases:
        path = folder / arguments[0]
        few = ["--config", folder / "few.toml"] if "more series" in name else []
        code, said, complained = tool.run("import", path, "--data", data, *arguments[1:], *few)
        verdicts.add(f"{name} is told", code == 1 and expected in complained.replace(f"{folder}/", ""), complained.strip()[-200:])
    waiting = tool.start("import", "-", "--format", "prometheus", "--data", data, stdin=subprocess.PIPE)
    waiting.stdin.write("up 1 1772366400\n")
    waiting.stdin.flush()
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    verdicts.add("Ctrl-C ends one that waits for more", wait_until(lambda: waiting.poll() == 1, 5), f"exit code {waiting.poll()}: {waiting.stderr.read().strip()}")
    code, said, _ = tool.run("import", "-", "--format", "prometheus", "--data", data, stdin=b"up 1 1772366400\n")
    verdicts.add("standard input is read", code == 0 and "1 rows of 1 series" in said, said.strip())


def killed(tool: Tool, folder: Path, rows: int, seed: int, verdicts: Verdicts):
    """Killed at random moments and started again, a file is in the store once."""
    rng = random.Random(seed)
    path, data = folder / "large.parquet", folder / "killed"
    duckdb.sql(
        f"COPY (SELECT make_timestamp(1748736000000000 + n * 1000000) AS ts, (n % 50)::text AS host, n::double AS value FROM range({rows}) t(n)) "
        f"TO '{path}' (FORMAT parquet)"
    )
    arguments = ["import", path, "--data", data, "--metric", "large"]
    kills = 0
    begun = time.monotonic()
    while True:
        process = tool.start(*arguments)
        try:
            said, complained = process.communicate(timeout=rng.uniform(0.3, 4) if kills < 12 else DEADLINE_S)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    found = Store(data).ask("SELECT count(*), sum(value), count(DISTINCT ts) FROM samples")
    truth = [(rows, float(rows * (rows - 1) // 2), rows)]
    versions = DeltaTable(str(data / "samples")).version()
    verdicts.add(
        "killed and started again, all rows are there once",
        process.returncode == 0 and kills > 0 and found == truth,
        f"{kills} kills, {versions} commits, {time.monotonic() - begun:.0f} s; {found} of {truth}; {said.strip()}{complained}",
    )
    return path


def beside(tool: Tool, folder: Path, large: Path, verdicts: Verdicts):
    """Beside a service that writes the same tables, and the same series."""
    data, port = folder / "demo", free_port()
    demo = tool.start("demo", "--seconds", "75", "--data", data, "--listen", f"127.0.0.1:{port}")
    url = ["--url", f"http://127.0.0.1:{port}", "--format", "csv"]

    def ask(sql):
        code, said, _ = tool.run("sql", *url, sql)
        return said.splitlines()[1:] if code == 0 else []

    up = wait_until(lambda: (ask("SELECT count(*) FROM series") or ["0"])[0] not in ("0", ""), 60)
    verdicts.add("a service runs", up, f"on port {port}")
    # What the service itself writes, as it was months ago.
    history = folder / "history.parquet"
    tool.run("sql", *url[:2], "--format", "parquet", "--output", history,
             "SELECT ts - INTERVAL '300 days' AS ts, name, labels, value, kind, unit FROM metrics")
    told = pq.read_metadata(history).num_rows
    seen, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            got = ask(f"SELECT count(*) FROM samples WHERE {OLD}")
            if got:
                seen.append(int(got[0]))
            stop.wait(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = pq.read_metadata(large).num_rows
    code, said, complained = tool.run("import", history, "--data", data)
    verdicts.add("what was exported comes back", code == 0 and f"{told:,} rows" in said, said.strip() + complained[-200:])
    importing = tool.start("import", large, "--data", data, "--metric", "large")
    time.sleep(0.3)
    code, _, complained = tool.run("import", history, "--data", data)
    verdicts.add("two imports into a folder at once: the second is told", code == 1 and "an import is under way" in complained, complained.strip())
    code, _, complained = tool.run("store", "compact", "--data", data)
    verdicts.add("a merge by hand at the same time is told", code == 1 and "belongs to another running writer" in complained, complained.strip())
    said, complained = importing.communicate(timeout=DEADLINE_S)
    verdicts.add("an import beside a service", importing.returncode == 0, said.strip().replace("\n", " | ") + complained[-300:])
    by_label = "SELECT count(*) FROM metric.large WHERE host <> ''"
    shown = wait_until(lambda: ask(by_label) == [str(rows)], 45)
    verdicts.add("the service shows what was imported, by its labels", shown, f"{ask(by_label)} of {rows} rows")
    stop.set()
    watcher.join()
    verdicts.add("who asks meanwhile sees ever more", seen == sorted(seen) and len(seen) > 3, f"{len(seen)} looks, {seen[0]} to {seen[-1]}")
    said, complained = demo.communicate(timeout=DEADLINE_S)
    account = said.strip().splitlines()[-1] if said.strip() else ""
    verdicts.add("the service ends cleanly", demo.returncode == 0, f"exit code {demo.returncode}: {account} {complained[-300:]}")
    store = Store(data)
    old = store.ask(f"SELECT count(*) FROM samples WHERE {OLD}")
    verdicts.add("all that was imported is there", old == [(told + rows,)], f"{old} of {told} + {rows}")
    twice = store.ask("SELECT count(*) - count(DISTINCT series_id) FROM series")
    lost = store.ask("SELECT count(*) FROM samples WHERE series_id NOT IN (SELECT series_id FROM series)")
    verdicts.add("each series is told once, and all are told", twice == [(0,)] and lost == [(0,)], f"{twice} twice, {lost} lost")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--rows", type=int, default=50_000, help="of each file")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", metavar="DIR", help="work there and leave everything")
    chosen = parser.parse_args()
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(chosen.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tool = Tool(chosen.binary)
        made = files(folder, chosen.rows, chosen.seed, int(time.time()) // 60 * 60)
        data = formats(tool, folder, made, verdicts)
        compacted(tool, data, verdicts)
        wrong(tool, folder, verdicts)
        large = killed(tool, folder, 5_000_000, chosen.seed, verdicts)
        beside(tool, folder, large, verdicts)
    print(f"imports: {len(verdicts.rows) - verdicts.failed()} of {len(verdicts.rows)} checks passed")
    sys.exit(verdicts.failed() > 0)


if __name__ == "__main__":
    main()
