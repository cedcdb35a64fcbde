#!/usr/bin/env python3
"""Generated queries over a store, answered by Bellwether and by DuckDB from the same files, must have equal answers.

usage: sql_oracle.py --binary PATH [--data DIR] [--queries 200] [--seed 7] [--verbose]

Without --data a demo of twenty seconds makes the store. Rows are compared as multisets, numbers to nine digits, quantiles of
sketches within the error they promise. Of every query with rows the comparison itself is tried: a number changed, a row lost
and a row doubled must each be noticed. Ends with one line; exit code 1 where an answer differs.
"""

import argparse
import datetime as dt
import json
import math
import random
import re
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import duckdb
from deltalake import DeltaTable

SHOWN = 3
DIGITS = 1e-9
# What `hdr_quantile` promises beyond 128 values, and what interpolation between two of them may add.
SKETCH = 1 / 200

# Our functions in DuckDB's words. Points are in the order of time, of several at one time the greatest; a trend is told from
# the day of the demo, for times since 1970 leave no digits for the rest.
MACROS = """
CREATE MACRO bw_first(v, ts) AS arg_min(v, (epoch_us(ts), -v));
CREATE MACRO bw_last(v, ts) AS arg_max(v, (epoch_us(ts), v));
CREATE MACRO ordered(v, ts) AS list({'t': epoch_us(ts), 'v': v} ORDER BY epoch_us(ts), -v);
CREATE MACRO once(l) AS list_filter(l, lambda p, i: i = 1 OR l[i - 1].t <> p.t);
CREATE MACRO points(v, ts) AS once(ordered(v, ts));
CREATE MACRO steps(l) AS list_zip(l[:-2], l[2:]);
CREATE MACRO growth(l) AS CASE WHEN len(l) > 1 THEN list_sum(list_transform(steps(l), lambda p: CASE WHEN p[2].v < p[1].v THEN p[2].v ELSE p[2].v - p[1].v END)) END;
CREATE MACRO increase(v, ts) AS growth(points(v, ts));
CREATE MACRO rate(v, ts) AS increase(v, ts) / ((epoch_us(max(ts)) - epoch_us(min(ts))) / 1e6);
CREATE MACRO change(l) AS CASE WHEN len(l) > 1 THEN l[-1].v - l[1].v END;
CREATE MACRO delta(v, ts) AS change(points(v, ts));
CREATE MACRO mean_of(l) AS CASE WHEN len(l) > 1
    THEN list_sum(list_transform(steps(l), lambda p: p[1].v * (p[2].t - p[1].t))) / (l[-1].t - l[1].t) ELSE l[1].v END;
CREATE MACRO time_weight(v, ts) AS mean_of(points(v, ts));
CREATE MACRO weighed(v, t, half) AS list_sum(list_transform(list_zip(v, t), lambda p: p[1] * pow(2.0, (p[2] - list_max(t)) / half)))
    / list_sum(list_transform(t, lambda x: pow(2.0, (x - list_max(t)) / half)));
CREATE MACRO ewma(v, ts, half) AS weighed(list(v), list(epoch_us(ts)), epoch_us(half::INTERVAL)::DOUBLE);
CREATE MACRO trend(v, ts) AS regr_slope(v, (epoch_us(ts) - 1767571200000000) / 1e6);
CREATE MACRO topk(v, k) AS list(v ORDER BY v DESC)[:k];
CREATE MACRO percentile_cont(v, q) AS quantile_cont(v, q);
CREATE MACRO hdr_quantile(v, q) AS quantile_cont(v, q);
"""


class Store:
    """The store in DuckDB, and what there is in it to ask about."""

    def __init__(self, folder: Path):
        self.db = duckdb.connect()
        self.db.execute("SET TimeZone = 'UTC'")
        for macro in MACROS.strip().split(";\n"):
            self.db.execute(macro)
        for log in sorted(folder.glob("*/_delta_log")):
            name = log.parent.name
            self.db.register("arrow", DeltaTable(str(log.parent)).to_pyarrow_table())
            columns = "* EXCLUDE (day)" if name in ("samples", "events") else "*"
            self.db.execute(f'CREATE TABLE "{name}" AS SELECT {columns} FROM arrow')
            self.db.unregister("arrow")
        self.db.execute("""CREATE VIEW metrics AS SELECT s.ts, r.name, r.labels, s.value, r.kind, r.unit, s.series_id
            FROM samples s JOIN series r ON s.series_id = r.series_id; CREATE SCHEMA metric""")
        self.metrics = {}
        labels = "SELECT name, list(DISTINCT label ORDER BY label) FROM (SELECT name, unnest(map_keys(labels)) AS label FROM series) GROUP BY 1 ORDER BY 1"
        for name, keys in self.db.execute(labels).fetchall():
            self.metrics[name] = keys
            columns = "".join(f"""labels['{key}'] AS "{key}", """ for key in keys)
            self.db.execute(f"""CREATE VIEW metric."{name}" AS SELECT ts, value, {columns}series_id FROM metrics WHERE name = '{name}'""")
        self.values = {(name, key): [v for v, in self.db.execute(
            "SELECT DISTINCT labels[?] AS v FROM series WHERE name = ? AND v IS NOT NULL ORDER BY 1", [key, name]).fetchall()]
            for name, keys in self.metrics.items() for key in keys}
        self.least, self.greatest = self.fetch("SELECT min(ts), max(ts) FROM samples")[0]
        typed = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'main' ORDER BY 1, 2"
        self.columns = {}
        for table, column, kind in self.db.execute(typed).fetchall():
            self.columns.setdefault(table, {})[column] = kind
        self.views = sorted(t for t, c in self.columns.items() if "window_end" in c and self.rows(t))

    def rows(self, table: str) -> int:
        return self.fetch(f'SELECT count(*) FROM "{table}"')[0][0]

    def answer(self, sql: str):
        return self.fetch(in_duckdb(sql))

    def fetch(self, sql: str):
        """By way of Arrow, which needs no other package to tell of times in UTC."""
        table = self.db.sql(sql).to_arrow_table()
        return [list(row) for row in zip(*(column.to_pylist() for column in table.columns))]


def in_duckdb(sql: str) -> str:
    sql = re.sub(r"\b(first|last)\(", r"bw_\1(", sql)
    return re.sub(r"histogram\((\w+), (\d+), (\d+), (\d+)\)", histogram, sql)


def histogram(call) -> str:
    column, least, greatest, buckets = call[1], *map(int, call.groups()[1:])
    bounds = [least + (greatest - least) * i / buckets for i in range(buckets + 1)]
    tests = [f"{column} < {bounds[0]}", *(f"{column} >= {a} AND {column} < {b}" for a, b in zip(bounds, bounds[1:])), f"{column} >= {bounds[-1]}"]
    return "[" + ", ".join(f"count(*) FILTER (WHERE {test})" for test in tests) + "]"


class Queries:
    """Makes queries, the same for the same seed."""

    PLAIN = ["count(*)", "count(value)", "sum(value)", "min(value)", "max(value)", "avg(value)", "stddev(value)", "var_pop(value)",
             "median(value)", "count(DISTINCT value)", "min(ts)", "max(ts)", "percentile_cont(value, 0.9)", "bool_or(value > 1)",
             "sum(value) FILTER (WHERE value < 10)", "topk(value, 3)", "histogram(value, 0, 8, 4)", "trend(value, ts)"]
    OF_ONE_SERIES = ["increase(value, ts)", "rate(value, ts)", "delta(value, ts)", "time_weight(value, ts)", "ewma(value, ts, '5 minutes')",
                     "first(value, ts)", "last(value, ts)"]
    WIDTHS = ["30 seconds", "1 minute", "7 minutes", "15 minutes", "1 hour", "1 day", "1 week", "1 month"]

    def __init__(self, store: Store, seed: int):
        self.store, self.pick = store, random.Random(seed)
        self.kinds = [self.grouped, self.of_metric, self.of_series, self.of_events, self.of_view, self.windowed, self.joined,
                      self.nested, self.combined, self.quantiles, self.listed]

    def __iter__(self):
        while True:
            yield self.pick.choice(self.kinds)()

    def some(self, items, most=3):
        return self.pick.sample(items, self.pick.randint(1, min(most, len(items))))

    def time(self):
        span = (self.store.greatest - self.store.least).total_seconds()
        at = self.store.least + dt.timedelta(seconds=round(self.pick.uniform(-0.05, 1.05) * span, self.pick.choice([0, 3])))
        return at.strftime("TIMESTAMPTZ '%Y-%m-%d %H:%M:%S.%f+00:00'")

    def metric(self):
        name = self.pick.choice(sorted(self.store.metrics))
        return name, self.store.metrics[name]

    def condition(self, name=None, keys=(), column="labels['{}']"):
        """A condition on time, value or a label; all of them are true, false or unknown in both."""
        options = [f"ts >= {self.time()}", f"ts < {self.time()}", f"value {self.pick.choice(['<', '>=', '<>'])} {self.pick.choice([0, 0.05, 1, 3, 20])}",
                   f"NOT (value BETWEEN {self.pick.choice([0, 0.1])} AND 1)", "value IS NOT NULL"]
        for key in keys:
            values = self.store.values[name, key]
            of, value = column.format(key), self.pick.choice(values)
            options += [f"{of} = '{value}'", f"{of} <> '{value}'", f"{of} IN ('{value}', '{self.pick.choice(values)}', 'nothing')", f"{of} IS NULL",
                        f"{of} LIKE '%{value[-2:]}'", f"{of} > '{value}'",
                        f"({of} = '{value}' OR value > 2)", f"coalesce({of}, 'none') <> '{value}'"]
        return self.pick.choice(options)

    def conditions(self, *args, **named):
        return " AND ".join(self.condition(*args, **named) for _ in range(self.pick.randint(0, 3))) or "true"

    def bucket(self):
        return f"time_bucket(INTERVAL '{self.pick.choice(self.WIDTHS)}', ts)"

    def select(self, keys, aggregates, source, where, having="true"):
        columns = [f"{key} AS k{i}" for i, key in enumerate(keys)] + [f"{one} AS a{i}" for i, one in enumerate(aggregates)]
        group = f" GROUP BY {', '.join(str(i + 1) for i in range(len(keys)))} HAVING {having}" if keys else ""
        return f"SELECT {', '.join(columns)} FROM {source} WHERE {where}{group}"

    def grouped(self):
        name, labels = self.metric()
        keys = self.some(["name", self.bucket(), *(f"labels['{label}']" for label in labels)])
        if self.pick.random() < 0.2:
            keys = []
        having = self.pick.choice(["true", "count(*) > 3", "max(value) > 1"])
        return self.select(keys, self.some(self.PLAIN, 4), "metrics", self.conditions(name, labels) + self.pick.choice(["", f" AND name = '{name}'"]), having)

    def of_metric(self):
        name, labels = self.metric()
        keys = self.some([self.bucket(), *(f'"{label}"' for label in labels)])
        return self.select(keys, self.some(self.PLAIN, 4), f'metric."{name}"', self.conditions(name, labels, column='"{}"'))

    def of_series(self):
        name, labels = self.metric()
        keys = ["series_id", *self.some([self.bucket(), "name"], 1)]
        return self.select(keys, self.some(self.OF_ONE_SERIES, 4), "metrics", self.conditions(name, labels) + f" AND name = '{name}'")

    def of_events(self):
        keys = self.some([self.bucket(), "type", "subject", "source", "outcome", "severity"])
        aggregates = self.some(["count(*)", "avg(duration_ms)", "max(duration_ms)", "count(DISTINCT subject)", "min(ts)", "count(outcome)",
                                "count(*) FILTER (WHERE outcome = 'failure')", "sum(duration_ms)"])
        where = self.pick.choice(["true", "outcome IS NOT NULL", f"ts > {self.time()}", "duration_ms > 1000", "type LIKE '%ed'", "severity = 'info' OR outcome = 'success'"])
        return self.select(keys, aggregates, "events", where)

    def of_view(self):
        view = self.pick.choice(self.store.views)
        columns = self.store.columns[view]
        texts = [c for c, kind in columns.items() if kind == "VARCHAR"]
        numbers = [c for c, kind in columns.items() if kind in ("DOUBLE", "BIGINT")]
        keys = self.some([*texts, "window_start", "time_bucket(INTERVAL '10 minutes', window_end)"], 2)
        aggregates = ["count(*)", *(f'{self.pick.choice(["sum", "min", "max", "avg"])}("{c}")' for c in self.some(numbers, 2))]
        return self.select(keys, aggregates, view, f"window_end > {self.time()}")

    def windowed(self):
        name, labels = self.metric()
        over = f"OVER (PARTITION BY series_id ORDER BY ts{self.pick.choice(['', ' ROWS BETWEEN 3 PRECEDING AND CURRENT ROW'])})"
        call = self.pick.choice(["sum(value)", "avg(value)", "count(*)", "max(value)", "first_value(value)", "lag(value)", "lead(value, 2)", "row_number()", "rank()", "ntile(3)"])
        frame = over if not re.match("lag|lead|row|rank|ntile", call) else "OVER (PARTITION BY series_id ORDER BY ts)"
        return f"SELECT ts, series_id, value, {call} {frame} AS a FROM metrics WHERE name = '{name}' AND series_id % 4 = 1 AND {self.conditions(name, labels)}"

    def joined(self):
        (one, labels), (other, others) = self.metric(), self.metric()
        shared = sorted(set(labels) & set(others))
        width = self.pick.choice(self.WIDTHS[1:5])
        on = " AND ".join(["a.t = b.t", *(f'a."{label}" = b."{label}"' for label in shared)])
        def side(name):
            keys = ", ".join([f"time_bucket(INTERVAL '{width}', ts) AS t", *(f'"{label}"' for label in shared)])
            return f'(SELECT {keys}, avg(value) AS v, count(*) AS n FROM metric."{name}" GROUP BY {", ".join(str(i + 1) for i in range(1 + len(shared)))})'
        kind = self.pick.choice(["JOIN", "LEFT JOIN", "FULL JOIN"])
        return f"SELECT a.t AS t1, b.t AS t2, a.v AS v1, b.v AS v2, a.n + b.n AS n FROM {side(one)} a {kind} {side(other)} b ON {on}"

    def nested(self):
        name, labels = self.metric()
        return self.pick.choice([
            f"SELECT count(*) AS n FROM metrics WHERE name = '{name}' AND value > (SELECT avg(value) FROM metrics WHERE name = '{name}')",
            f"SELECT series_id, max(value) AS m FROM samples WHERE series_id IN (SELECT series_id FROM series WHERE name = '{name}') GROUP BY 1",
            f"SELECT name, count(*) AS n FROM series r WHERE EXISTS (SELECT 1 FROM samples s WHERE s.series_id = r.series_id AND s.value > {self.pick.choice([1, 5, 20])}) GROUP BY name",
            f"WITH top AS (SELECT series_id, avg(value) AS v FROM metrics WHERE name = '{name}' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3) SELECT t.series_id, t.v, count(*) AS n FROM top t JOIN samples s ON s.series_id = t.series_id GROUP BY 1, 2",
            f"SELECT t, n FROM (SELECT time_bucket(INTERVAL '5 minutes', ts) AS t, count(*) AS n, row_number() OVER (ORDER BY count(*) DESC, time_bucket(INTERVAL '5 minutes', ts)) AS place FROM metric.\"{name}\" GROUP BY 1) WHERE place <= 5",
            f"SELECT CASE WHEN value < 0.1 THEN 'low' WHEN value < 2 THEN 'mid' ELSE 'high' END AS level, count(*) AS n, round(sum(value), 3) AS s FROM metrics WHERE name = '{name}' GROUP BY 1",
        ])

    def combined(self):
        (one, labels), (other, others) = self.metric(), self.metric()
        word = self.pick.choice(["UNION ALL", "UNION", "INTERSECT", "EXCEPT"])
        first, second = self.pick.choice(labels), self.pick.choice(others)
        return f"""SELECT "{first}" AS k, time_bucket(INTERVAL '1 hour', ts) AS t FROM metric."{one}" {word} SELECT "{second}", time_bucket(INTERVAL '1 hour', ts) FROM metric."{other}" """

    def quantiles(self):
        name, labels = self.metric()
        keys = self.some([f"labels['{label}']" for label in labels], 2)
        return self.select(keys, [f"hdr_quantile(value, {q})" for q in self.some([0.05, 0.5, 0.9, 0.99], 2)], "metrics", f"name = '{name}'")

    def listed(self):
        name, labels = self.metric()
        columns = ", ".join(f"labels['{label}'] AS \"{label}\"" for label in labels)
        order = self.pick.choice(["ts, series_id", "ts DESC, series_id", "value DESC, ts, series_id"])
        return f"SELECT ts, value, series_id, {columns} FROM metrics WHERE name = '{name}' AND {self.conditions(name, labels)} ORDER BY {order} LIMIT {self.pick.choice([1, 10, 100])}"


def plain(value):
    """One form for what both say."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.timezone.utc)
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value):
        return dt.datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [plain(one) for one in value]
    return float(value) if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) else value


def in_order(rows):
    def key(value):
        if isinstance(value, float):
            return f"{value:.5e}"
        return str([key(one) for one in value]) if isinstance(value, list) else str(value)
    return sorted(([plain(value) for value in row] for row in rows), key=lambda row: [key(value) for value in row if not isinstance(value, float)] + [key(value) for value in row])


def equal(ours, theirs, tolerance) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(equal(a, b, tolerance) for a, b in zip(ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=1e-9)
    return type(ours) is type(theirs) and ours == theirs


def difference(ours, theirs, tolerance):
    """Returns what differs between two sets of rows; none where nothing does."""
    ours, theirs = in_order(ours), in_order(theirs)
    if len(ours) != len(theirs):
        return f"{len(ours)} rows where DuckDB has {len(theirs)}"
    wrong = [(a, b) for a, b in zip(ours, theirs) if not equal(a, b, tolerance)]
    return f"{len(wrong)} rows differ, as {wrong[0]}" if wrong else None


def controls(rows, tolerance):
    """Returns which spoilt copies of an answer pass for it."""
    number = next(((i, j) for i, row in enumerate(rows) for j, v in enumerate(row) if isinstance(v, (int, float)) and not isinstance(v, bool)), None)
    spoilt = {"a row lost": rows[1:], "a row doubled": [rows[0], *rows]}
    if number:
        i, j = number
        spoilt["a number changed"] = [[v * (1 + 4 * tolerance) + 4 * tolerance if (a, b) == (i, j) else v for b, v in enumerate(row)] for a, row in enumerate(rows)]
    return [name for name, copy in spoilt.items() if difference(copy, rows, tolerance) is None]


def answers(binary: Path, folder: Path, queries: list):
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(";\n".join(queries))
        file.flush()
        ran = subprocess.run([binary, "sql", "--data", folder, "--file", file.name, "--format", "json"], capture_output=True, text=True)
    decoder, at, rows = json.JSONDecoder(), 0, []
    while at < len(ran.stdout):
        answer, at = decoder.raw_decode(ran.stdout, at)
        rows.append([list(row.values()) for row in answer])
        at += len(ran.stdout[at:]) - len(ran.stdout[at:].lstrip())
    if ran.returncode or len(rows) != len(queries):
        sys.exit(f"sql_oracle: {len(rows)} of {len(queries)} answers: {ran.stderr.strip()}\n{queries[min(len(rows), len(queries) - 1)]}")
    return rows


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", type=Path, required=True)
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--queries", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--verbose", action="store_true")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as home:
        data = asked.data or Path(home) / "data"
        if not asked.data:
            demo = [asked.binary, "demo", "--seconds", "20", "--seed", str(asked.seed), "--data", data, "--listen", "127.0.0.1:0"]
            ran = subprocess.run(demo, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(f"sql_oracle: the demo failed: {ran.stderr.strip()}")
        store = Store(data)
        made = iter(Queries(store, asked.seed))
        queries = list(dict.fromkeys(next(made) for _ in range(asked.queries * 2)))[:asked.queries]
        ours = answers(asked.binary, data, queries)
        wrong, compared, empty, missed = [], 0, 0, set()
        for sql, rows in zip(queries, ours):
            tolerance = SKETCH if "hdr_quantile" in sql else DIGITS
            theirs = store.answer(sql)
            what = difference(rows, theirs, tolerance)
            if asked.verbose:
                print(f"{'FAIL' if what else 'ok  '} {len(rows):6} rows  {sql}")
            if what:
                wrong.append((sql, what))
            compared += len(rows)
            empty += not rows
            missed.update(controls(rows, tolerance) if rows else ())
    for sql, what in wrong[:SHOWN]:
        print(f"{what}\n  {sql}")
    for name in sorted(missed):
        print(f"control: {name} was not noticed")
    print(f"sql_oracle: {len(queries) - len(wrong)} of {len(queries)} queries equal, {compared} rows, {empty} answers without rows, seed {asked.seed}")
    sys.exit(bool(wrong or missed or empty > len(queries) / 3))


if __name__ == "__main__":
    main()
