#!/usr/bin/env python3
"""The same samples at rest in Bellwether, Prometheus and VictoriaMetrics: bytes a sample, index included.

usage: compare.py --store DIR [--promtool PATH] [--victoria-metrics PATH] [--work DIR]

`--store` is what `BELLWETHER_BENCH_KEEP=DIR make bench BENCH=at_rest` left. Its samples are written as text by DuckDB, and given
to `promtool tsdb create-blocks-from openmetrics` and to VictoriaMetrics' /api/v1/import/prometheus, which is then made to merge
its parts. Each is asked how many samples it holds.
"""

import argparse
import json
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import duckdb
from deltalake import DeltaTable

CHUNK = 64 << 20
SETTLED_S = 20


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write(store: Path, path: Path, time_of: str, end: str) -> int:
    """Writes all samples as text, series after series; returns how many."""
    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = true")
    for name in ("samples", "series"):
        connection.register(name, DeltaTable(str(store / name)).to_pyarrow_dataset())
    connection.execute("CREATE TABLE named AS SELECT series_id, name, labels FROM series")
    heads = {}
    for series_id, name, labels in connection.execute("SELECT * FROM named").fetchall():
        pairs = ",".join(f"{key}={json.dumps(value)}" for key, value in dict(labels).items())
        heads[series_id] = f"{name}{{{pairs}}}"
    count = 0
    with open(path, "w", buffering=1 << 20) as file:
        rows = connection.execute(f"SELECT series_id, value, {time_of} FROM samples ORDER BY series_id, ts")
        while batch := rows.fetchmany(500_000):
            count += len(batch)
            file.write("".join(f"{heads[series_id]} {value!r} {at}\n" for series_id, value, at in batch))
        file.write(end)
    return count


def told(name: str, count: int, size_of: int, seconds: float, peak_mib: float):
    print(f"{name:16} {size_of / count:6.3f} bytes a sample  {count / seconds:12,.0f} samples/s taken in  {peak_mib:8,.0f} MiB at most", flush=True)


def prometheus(tool: str, text: Path, data: Path, count: int):
    begun = time.monotonic()
    subprocess.run([tool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)], check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - begun
    held = sum(json.loads(meta.read_text())["stats"]["numSamples"] for meta in data.glob("*/meta.json"))
    assert held == count, f"{held} of {count} samples"
    told("Prometheus", count, size(data), took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def victoria_metrics(program: str, text: Path, data: Path, count: int):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    command = [program, f"-storageDataPath={data}", "-retentionPeriod=100y", f"-httpListenAddr=127.0.0.1:{port}", "-search.maxUniqueTimeseries=10000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path: str, body=None) -> bytes:
        return urllib.request.urlopen(urllib.request.Request(base + path, body), timeout=600).read()

    try:
        for _ in range(100):
            try:
                ask("/health")
                break
            except OSError:
                time.sleep(0.1)
        begun = time.monotonic()
        with open(text, "rb") as file:
            while chunk := file.read(CHUNK):
                ask("/api/v1/import/prometheus", chunk + file.readline())
        ask("/internal/force_flush")
        took = time.monotonic() - begun
        ask("/internal/force_merge")
        last, since = size(data), time.monotonic()
        while time.monotonic() - since < SETTLED_S:
            time.sleep(1)
            if (now := size(data)) != last:
                last, since = now, time.monotonic()
        rows = [line for line in ask("/metrics").decode().splitlines() if line.startswith("vm_rows{") and "indexdb" not in line]
        held = sum(int(float(line.rsplit(" ", 1)[1])) for line in rows)
        assert held == count, f"{held} of {count} samples"
        peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        told("VictoriaMetrics", count, last, took, int(peak.split()[1]) / 1024)
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--promtool", default=shutil.which("promtool"))
    parser.add_argument("--victoria-metrics", default=shutil.which("victoria-metrics"))
    parser.add_argument("--work", type=Path, help="work there and leave everything")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        text = work / "samples.txt"
        count = write(chosen.store, text, "(epoch_us(ts) // 1000) / 1000", "# EOF\n")
        ours = sum(size_of for name in ("samples", "series") for size_of in DeltaTable(str(chosen.store / name)).get_add_actions(flatten=True).column("size_bytes").to_pylist())
        print(f"{'Bellwether':16} {ours / count:6.3f} bytes a sample of {count:,}", flush=True)
        if chosen.promtool:
            prometheus(chosen.promtool, text, work / "prometheus", count)
        if chosen.victoria_metrics:
            write(chosen.store, text, "epoch_us(ts) // 1000", "")
            victoria_metrics(chosen.victoria_metrics, text, work / "victoria", count)


if __name__ == "__main__":
    main()
