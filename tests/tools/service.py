"""Runs `bellwether run` as a process of its own: starts it, waits for it, kills it, and weighs what it used."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

POLL_S = 0.05
LOG = "warn,bellwether=info"
# A killed member is to be missed soon, not after the usual 45 s.
CLIENT = {"session.timeout.ms": "6000"}


def wait_until(condition, seconds: float) -> bool:
    """Calls a condition until it holds; says whether it did before the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(POLL_S)
    return bool(condition())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Service:
    def __init__(self, binary: str, config: Path, log: Path, port: int):
        self.command = [binary, "run", "--config", str(config)]
        self.log_path, self.port = log, port
        self.process = None
        self.starts = self.kills = 0
        self.cpu_s = 0.0
        self.rss_peak_mb = 0.0

    def start(self):
        with open(self.log_path, "ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_")}
            environment["BELLWETHER_LOG"] = LOG
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self.starts += 1

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def get(self, path: str, accept: str = "*/*"):
        """Returns (status, body); (0, b"") where nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def sql(self, statement: str):
        """Returns (status, rows as CSV under a line of names)."""
        return self.get("/sql?" + urllib.parse.urlencode({"query": statement, "format": "csv"}))

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def weigh(self):
        """Reads the peak of resident memory and the CPU time so far; must be called before the process is reaped."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            stat = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.rss_peak_mb = max(self.rss_peak_mb, int(line.split()[1]) / 1024)
        self._cpu_now = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    _cpu_now = 0.0

    def _ended(self):
        self.cpu_s += self._cpu_now
        self._cpu_now = 0.0
        self.process = None

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def await_end(self, seconds: float):
        """Waits until it ends by itself; returns the exit code, or None where it is still there after the deadline."""
        wait_until(lambda: self.weigh() or not self.alive(), seconds)
        if self.alive():
            return None
        code = self.process.returncode
        self._ended()
        return code

    def kill(self):
        """SIGKILL, as a crash would."""
        self.weigh()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1
        self._ended()

    def stop(self, seconds: float):
        """SIGTERM; returns the exit code, or None where it had to be killed after the deadline."""
        self.weigh()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self._ended()

    def log_tail(self, lines: int = 30) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def configuration(bootstrap: str, prefix: str, store: Path, port: int, formats: dict, capacity: float, client=CLIENT, more="", commit="500ms") -> str:
    """Returns the bellwether.toml of one run: every topic and group of its own, everything else as shipped. `client`:
    properties of the Kafka clients; `more`: further sections; `commit`: the interval of commits to the store."""
    properties = ", ".join(f'"{name}" = "{value}"' for name, value in client.items())
    inputs = "\n".join(f'[[inputs]]\ntopic = "{prefix}.{t}"\nformat = "{f}"\n' for t, f in formats.items())
    return f"""
[service]
instance = "{prefix}-0"

[kafka]
brokers = "{bootstrap}"
group_id = "{prefix}"
client = {{ {properties} }}

{inputs}
[store]
url = "{store}"
commit_interval = "{commit}"
# Often, so that files are merged under every fault.
upkeep_interval = "1s"

[topics]
alerts = "{prefix}.alerts"
decisions = "{prefix}.decisions"
forecasts = "{prefix}.forecasts"
anomalies = "{prefix}.anomalies"

[[insight.anomaly]]
view = "service_latency_1m"
column = "p95"
by = ["service"]

[[insight.outlier]]
view = "resource_use_30s"
column = "used_ratio"
group = ["service", "resource"]
member = "replica"

[[insight.forecast]]
view = "service_errors_1m"
column = "n"
by = ["service"]
horizon = "5m"

[[scaling]]
target = "checkout"
view = "service_errors_1m"
column = "n"
key = {{ service = "checkout" }}
capacity_per_replica = {capacity}
replicas_max = 20

[serve]
listen = "127.0.0.1:{port}"

{more}"""
