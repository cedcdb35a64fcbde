#!/usr/bin/env python3
"""What every view of tests/views must yield, computed by DuckDB: the independent oracle of the golden views.

    views_oracle.py [--write] [FOLDER…]

A folder is one case: view files, input (metrics.ndjson, events.ndjson: one record a line, in order of arrival, one
partition each), dimension tables (`CREATE EXTERNAL TABLE` beside a CSV), oracle.sql and one <view>.expected.ndjson per
view. By default each view's rows are computed anew and compared with the expected file; exit code 1 and the first
differing rows where they differ. With --write the expected files are written. Folders are paths, or names of cases
under $BELLWETHER_VIEWS_DIR (default: tests/views); without any, all of them are done.

The oracle.sql of a case says, in DuckDB's SQL, what each view means: one `CREATE VIEW <view>` each, over the tables
made here and the macros of views_macros.sql. Nothing in these files is derived from how Bellwether evaluates a view.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import duckdb
import pyarrow as pa

ROOT = Path(os.environ.get("BELLWETHER_VIEWS_DIR") or Path(__file__).resolve().parents[1] / "views")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
TOLERANCE = 1e-9
SHOWN = 3
# What a column may be, so that both sides write a value the same way; a DECIMAL, say, is a slip in oracle.sql.
WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UBIGINT", "INT128"}
OTHERS = {"DOUBLE", "VARCHAR", "BOOLEAN", "TIMESTAMP WITH TIME ZONE", "MAP(VARCHAR, VARCHAR)"}
MACROS = Path(__file__).with_name("views_macros.sql")


class Fault(Exception):
    """A case that cannot be judged as it stands; the text says what was expected."""


def stamp(given) -> datetime:
    """Reads a time as a producer may write it: RFC 3339, or an epoch number whose unit is told by its size."""
    if isinstance(given, str):
        at = datetime.fromisoformat(given)
        if at.tzinfo is None:
            raise Fault(f"expected a time with an offset, got {given!r}")
        return at
    per_second = next(unit for unit in (1, 10**3, 10**6, 10**9) if abs(given) < 10**11 * unit)
    return EPOCH + timedelta(microseconds=round(Fraction(given) * 10**6 / per_second))


def text(given):
    """A label's value: text as it is, a number or a boolean as its text in JSON."""
    return given if isinstance(given, str) else json.dumps(given)


def pairs(record: dict, key: str) -> list:
    return [(k, text(v)) for k, v in (record.get(key) or {}).items()]


def metric_row(arrival: int, r: dict) -> dict:
    return {"arrival": arrival, "ts": stamp(r["ts"]), "name": r["name"], "labels": pairs(r, "labels"),
            "value": float(r["value"]), "kind": r.get("kind") or "gauge", "unit": r.get("unit") or ""}


def event_row(arrival: int, r: dict) -> dict:
    duration, data = r.get("duration_ms"), r.get("data")
    return {"arrival": arrival, "ts": stamp(r["ts"]), "id": r["id"], "source": r.get("source") or "", "type": r["type"],
            "subject": r["subject"], "outcome": r.get("outcome"), "severity": r.get("severity"),
            "duration_ms": None if duration is None else float(duration), "attributes": pairs(r, "attributes"),
            "data": None if data is None else json.dumps(data, separators=(",", ":"), ensure_ascii=False)}


ARRIVAL, TIME, TEXT, NUMBER = pa.int64(), pa.timestamp("us", "UTC"), pa.string(), pa.float64()
MAP = pa.map_(TEXT, TEXT)
STREAMS = {
    "metrics": (metric_row, {"arrival": ARRIVAL, "ts": TIME, "name": TEXT, "labels": MAP, "value": NUMBER, "kind": TEXT,
                             "unit": TEXT}),
    "events": (event_row, {"arrival": ARRIVAL, "ts": TIME, "id": TEXT, "source": TEXT, "type": TEXT, "subject": TEXT,
                           "outcome": TEXT, "duration_ms": NUMBER, "severity": TEXT, "attributes": MAP, "data": TEXT}),
}
EXTERNAL = re.compile(r"^CREATE EXTERNAL TABLE (\w+)\s*\((.*?)\)\s*STORED AS CSV LOCATION '([^']+)'", re.M | re.S)


class Case:
    """One folder: which of its files are views, and which are tables."""

    def __init__(self, folder: Path):
        self.folder = folder
        statements = {path.stem: path.read_text() for path in sorted(folder.glob("*.sql")) if path.stem != "oracle"}
        self.tables = {name: found for name, sql in statements.items() if (found := EXTERNAL.search(sql))}
        self.views = [name for name in statements if name not in self.tables]
        self.oracle = folder / "oracle.sql"
        self.inputs = [name for name in STREAMS if (folder / f"{name}.ndjson").exists()]
        if not (self.views and self.inputs and self.oracle.exists()):
            raise Fault("expected at least one view, one input and an oracle.sql")
        for view in self.views:
            sql = statements[view]
            if not sql.startswith("-- ") or not re.search(rf"^CREATE MATERIALIZED VIEW {view}\b", sql, re.M):
                raise Fault(f"{view}.sql: expected a comment, then CREATE MATERIALIZED VIEW {view}")

    def expected(self, view: str) -> Path:
        return self.folder / f"{view}.expected.ndjson"

    def database(self):
        """Returns a database with the case's input, its tables, and the views of its oracle.sql."""
        db = duckdb.connect()
        # One thread: floating-point sums come out the same every time.
        db.execute("SET TimeZone = 'UTC'; SET threads = 1")
        db.execute(MACROS.read_text())
        for name in self.inputs:
            row, columns = STREAMS[name]
            records = map(json.loads, (self.folder / f"{name}.ndjson").read_text().splitlines())
            rows = [row(arrival, record) for arrival, record in enumerate(records)]
            db.register("given", pa.Table.from_pylist(rows, schema=pa.schema(columns)))
            db.execute(f"CREATE TABLE {name} AS FROM given")
        for name, found in self.tables.items():
            db.execute(*dimension(self.folder, name, found))
        db.execute(self.oracle.read_text())
        return db


def dimension(folder: Path, name: str, found: re.Match) -> tuple:
    """Returns the statement, and its argument, that makes in DuckDB the table an external one describes."""
    called, columns, location = found.groups()
    if called != name:
        raise Fault(f"{name}.sql: expected CREATE EXTERNAL TABLE {name}, got {called}")
    kinds = ", ".join(f"'{column}': '{kind}'" for column, kind in (text.split()[:2] for text in columns.split(",")))
    statement = f"CREATE TABLE {name} AS FROM read_csv($1, header = true, columns = {{{kinds}}})"
    return statement, [str(folder / location)]


def rows_of(db, view: str) -> list:
    """Returns a view's rows in the order of the expected file, each a dict in the order of its columns."""
    columns = [(name, kind) for name, kind, *_ in db.execute(f"DESCRIBE {view}").fetchall()]
    names = [name for name, _ in columns]
    if not {"window_start", "window_end"} <= set(names):
        raise Fault(f"{view}: expected window_start and window_end among its columns, got {names}")
    for name, kind in columns:
        if kind not in WHOLE | OTHERS:
            raise Fault(f"{view}.{name}: expected one of {sorted(WHOLE | OTHERS)}, got {kind} (hint: a CAST)")
    times = {name for name, kind in columns if kind == "TIMESTAMP WITH TIME ZONE"}
    shown = ", ".join(f"strftime(\"{n}\" AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')" if n in times else f'"{n}"'
                      for n in names)
    order = ["window_end", "window_start"] + [n for n in names if n not in ("window_end", "window_start")]
    order = ", ".join(f'"{n}" NULLS FIRST' for n in order)
    found = db.execute(f"SELECT {shown} FROM {view} ORDER BY {order}").fetchall()
    rows = [dict(zip(names, row, strict=True)) for row in found]
    if not rows:
        raise Fault(f"{view}: expected rows; a view without any proves nothing")
    for row in rows:
        if any(isinstance(v, float) and not math.isfinite(v) for v in row.values()):
            raise Fault(f"{view}: expected finite numbers, got {row}")
    return rows


def same(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=0)
    return type(a) is type(b) and a == b


def same_row(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(same(a[name], b[name]) for name in a)


def line(row) -> str:
    return "(no row)" if row is None else json.dumps(row, ensure_ascii=False, allow_nan=False)


def differences(view: str, expected: list, computed: list) -> list:
    """Returns a text for each of the first places where the two differ, and one that counts them."""
    places = [i for i in range(max(len(expected), len(computed)))
              if i >= len(expected) or i >= len(computed) or not same_row(expected[i], computed[i])]
    told = [f"{view}, line {i + 1}\n      file    {line(expected[i] if i < len(expected) else None)}"
            f"\n      oracle  {line(computed[i] if i < len(computed) else None)}" for i in places[:SHOWN]]
    if places:
        told.append(f"{view}: {len(places)} places differ; {len(expected)} rows in the file, {len(computed)} computed")
    return told


def judge(folder: Path, write: bool) -> tuple:
    """Returns (how many views and rows the case has, what is wrong with it)."""
    try:
        case = Case(folder)
        db = case.database()
        wrong, rows = [], 0
        known = {case.expected(view) for view in case.views}
        strangers = sorted(set(folder.glob("*.expected.ndjson")) - known)
        wrong += [f"{path.name}: expected a view of this name" for path in strangers]
        for view in case.views:
            computed = rows_of(db, view)
            rows += len(computed)
            path = case.expected(view)
            if write:
                path.write_text("".join(line(row) + "\n" for row in computed))
            elif not path.exists():
                wrong.append(f"{path.name} is not there (hint: --write)")
            else:
                wrong += differences(view, [json.loads(text) for text in path.read_text().splitlines()], computed)
        return len(case.views), rows, wrong
    except (Fault, duckdb.Error, KeyError, ValueError) as error:
        return 0, 0, [f"{type(error).__name__}: {error}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the expected files instead of comparing")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a path, or the name of a case (default: all)")
    chosen = parser.parse_args()
    if not ROOT.is_dir():
        parser.error(f"expected a folder of cases at {ROOT}")
    begun = time.monotonic()
    given = [path if (path := Path(name)).is_dir() else ROOT / name for name in chosen.folders]
    folders = given or sorted(path for path in ROOT.iterdir() if path.is_dir())
    views = rows = failed = 0
    for folder in folders:
        v, r, wrong = judge(folder, chosen.write)
        views, rows, failed = views + v, rows + r, failed + bool(wrong)
        for text in wrong:
            print(f"  {folder.name}: {text}")
    done = "written" if chosen.write else "computed by DuckDB"
    print(f"golden views: {len(folders)} cases, {views} views, {rows} rows {done}, {failed} failed, "
          f"in {time.monotonic() - begun:.1f} s")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
