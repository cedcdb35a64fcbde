#!/usr/bin/env python3
"""The store in a bucket: several writers at once, one of them killed, beside merges and readers, on an S3 server run here.

usage: s3.py --binary PATH [--keep DIR]

The server is moto's, one request at a time, so that its conditional put is one step. Two imports of twelve files each write the
same tables, with the same series, while files are merged and counted; what is there afterwards is read by deltalake and DuckDB.
The control is a server that does not look at the condition: there rows must be lost. Every check is named and printed; exit
code 1 where one fails.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import duckdb
from deltalake import DeltaTable

from checks import Verdicts
from service import free_port, wait_until

BUCKET = "bellwether"
FILES, ROWS, SERIES = 12, 2_000, 40
DEADLINE_S = 300
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def serve(port: int, careless: bool):
    """Serves S3 until it is killed. `careless`: without looking at the condition of a put."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    inner = DomainDispatcherApplication(create_backend_app)

    def application(environment, respond):
        if careless:
            environment.pop("HTTP_IF_NONE_MATCH", None)
        return inner(environment, respond)

    run_simple("127.0.0.1", port, application, threaded=False)


class Bucket:
    """An S3 server with one bucket, and the tables in it."""

    def __init__(self, careless: bool = False):
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        arguments = ["--serve", str(self.port), *(["--careless"] if careless else [])]
        self.process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if not wait_until(self.make, 60):
            raise RuntimeError("the S3 server did not start")
        # As the clouds' own tools are told where to go and who asks.
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true"}
        self.url = f"s3://{BUCKET}/store"

    def make(self) -> bool:
        try:
            request = urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")
            return urllib.request.urlopen(request, timeout=5).status == 200
        except OSError:
            return False

    def ask(self, sql: str) -> list:
        connection = duckdb.connect()
        for name in ("samples", "series"):
            table = DeltaTable(f"{self.url}/{name}", storage_options=self.environment)
            connection.register(name, table.to_pyarrow_table())
        return connection.execute(sql).fetchall()

    def stop(self):
        self.process.kill()
        self.process.wait()


class Tool:
    def __init__(self, binary: str, bucket: Bucket):
        self.binary = binary
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BELLWETHER_", "AWS_"))}
        self.environment = {**kept, **bucket.environment}

    def start(self, *arguments):
        command = [self.binary, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)

    def run(self, *arguments):
        """Returns (exit code, what it said, what it complained of)."""
        process = self.start(*arguments)
        said, complained = process.communicate(timeout=DEADLINE_S)
        return process.returncode, said, complained


def files(folder: Path, who: int) -> list:
    """Writes the files of one import: all have the same series, and times of their own over three days."""
    made = []
    for number in range(FILES):
        path = folder / f"{who}-{number}.parquet"
        first = (number * 2 + who) * ROWS
        duckdb.sql(
            f"COPY (SELECT make_timestamp(1748736000000000 + (n % 3) * 86400000000 + n * 1000000) AS ts, (n % {SERIES})::text AS host, "
            f"n::double AS value FROM range({first}, {first + ROWS}) t(n)) TO '{path}' (FORMAT parquet)"
        )
        made.append(path)
    return made


def together(tool: Tool, bucket: Bucket, folder: Path, kill: bool):
    """Two imports at once, with merges and a reader beside. Returns (exit codes, merges, the reader's counts, complaints)."""
    place = ["--data", bucket.url]
    imports = [["import", *files(folder, who), *place, "--metric", "m"] for who in (0, 1)]
    running = [tool.start(*arguments) for arguments in imports]
    counts, merges, stop = [], [], threading.Event()

    def maintain():
        while not stop.is_set():
            code, said, _ = tool.run("store", "compact", *place)
            merges.append((code, said.strip()))

    def read():
        while not stop.is_set():
            code, said, _ = tool.run("sql", *place, "--format", "csv", "SELECT count(*) FROM metric.m")
            if code == 0:
                counts.append(int(said.splitlines()[1]))

    beside = [threading.Thread(target=maintain), threading.Thread(target=read)]
    wait_until(lambda: tool.run("store", "stats", *place)[0] == 0, 60)
    [thread.start() for thread in beside]
    complaints = ""
    if kill:
        wait_until(lambda: counts and counts[-1] > 3 * ROWS or running[1].poll() is not None, 120)
        running[1].send_signal(signal.SIGKILL)
        running[1].communicate()
        running[1] = tool.start(*imports[1])
    for process in running:
        said, complained = process.communicate(timeout=DEADLINE_S)
        complaints += complained
    stop.set()
    [thread.join() for thread in beside]
    return [process.returncode for process in running], merges, counts, complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary")
    parser.add_argument("--keep", metavar="DIR", help="work there and leave everything")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--careless", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        return serve(chosen.serve, chosen.careless)
    verdicts, total = Verdicts(), 2 * FILES * ROWS
    truth = [(total, float(total * (total - 1) // 2), total)]
    whole = "SELECT count(*), sum(value), count(DISTINCT (series_id, ts)) FROM samples"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(chosen.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        begun, bucket = time.monotonic(), Bucket()
        tool = Tool(chosen.binary, bucket)
        codes, merges, counts, complaints = together(tool, bucket, folder, kill=True)
        took = f"{time.monotonic() - begun:.0f} s"
        verdicts.add("two imports into a bucket at once, one of them killed and started again", codes == [0, 0], f"{codes}, {took} {complaints[-300:]}")
        found = bucket.ask(whole)
        verdicts.add("every row is there once", found == truth, f"{found} of {truth}")
        series = bucket.ask("SELECT count(*), count(DISTINCT series_id) FROM series")
        verdicts.add("every series that both bring is told once", series == [(SERIES, SERIES)], str(series))
        rewrote = [said for code, said in merges if code == 0 and " 0 rows rewritten" not in said]
        verdicts.add("files were merged meanwhile", rewrote, f"{len(rewrote)} of {len(merges)} rounds; {rewrote[-1:]}")
        verdicts.add("a reader meanwhile sees ever more", counts == sorted(counts) and len(set(counts)) > 3, str(counts))
        code, said, complained = tool.run("store", "verify", "--data", bucket.url)
        verdicts.add("the store is sound", code == 0, (said + complained).strip())
        bucket.stop()
        bucket = Bucket(careless=True)
        codes, _, _, complaints = together(Tool(chosen.binary, bucket), bucket, folder, kill=False)
        try:
            found = bucket.ask(whole)
        except Exception as error:
            found = repr(error)[:200]
        verdicts.add("control: a server that does not look at the condition loses rows", found != truth, f"{codes}, {found}")
        bucket.stop()
    print(f"s3: {len(verdicts.rows) - verdicts.failed()} of {len(verdicts.rows)} checks passed")
    sys.exit(verdicts.failed() > 0)


if __name__ == "__main__":
    main()
