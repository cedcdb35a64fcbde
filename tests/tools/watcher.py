"""Asks a running service by SQL, again and again, how many rows it has: while rows go from memory into the store, while
the service is killed and started. A count must never shrink within one life of the process, nor pass what was produced."""

import threading

PAUSE_S = 0.2
SHOWN = 3
TABLES = ("samples", "events", "rejected")
STATEMENT = "SELECT " + ", ".join(f"(SELECT count(*) FROM {t}) AS {t}" for t in TABLES)


class Watcher:
    """`expected`: a function that gives, by table, the rows that may be there at most, as of its call."""

    def __init__(self, bellwether, expected):
        self.bellwether, self.expected = bellwether, expected
        self.answers, self.wrong = 0, []
        self.last = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self.thread.start()

    def stop(self):
        self.ended.set()
        self.thread.join(30)

    def _run(self):
        while not self.ended.wait(PAUSE_S):
            life = self.bellwether.starts
            counts = self.ask()
            # An answer counts only where it is surely of this life of the process.
            if counts and life == self.bellwether.starts:
                self._judge(life, counts)

    def ask(self):
        """Returns the rows of each table, or None where the service does not answer."""
        status, body = self.bellwether.sql(STATEMENT)
        if status != 200:
            return None
        return dict(zip(TABLES, map(int, body.decode().splitlines()[1].split(","))))

    def _judge(self, life, counts):
        most = self.expected()
        self.answers += 1
        for table, rows in counts.items():
            if rows > most[table]:
                self.wrong.append(f"{table}: {rows} of at most {most[table]}")
            if self.last and self.last[0] == life and rows < self.last[1][table]:
                self.wrong.append(f"{table}: {self.last[1][table]}, then {rows}")
        self.last = (life, counts)

    def check(self, expected: dict, verdicts):
        """To be called when all has been read and before the service is stopped."""
        verdicts.add("by SQL, rows never shrink or double while they are stored", self.answers and not self.wrong,
                     f"{self.answers} answers, {len(self.wrong)} wrong {self.wrong[:SHOWN]}")
        counts = self.ask()
        wanted = {table: expected[table] for table in TABLES}
        verdicts.add("by SQL, the tables hold every row in the end", counts == wanted, f"{counts}")
