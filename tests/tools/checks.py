"""Compares what Bellwether stored and said with the ground truth, by other people's readers only."""

import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from deltalake import DeltaTable
from jsonschema import Draft202012Validator

import truth

SHOWN = 3
READ_S_MAX = 120
MARKERS_S_MAX = 10
LEADER_S_MAX = 10
LEADERLESS = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
# From here on the value of a dead letter is cut, and a header tells its whole length.
LETTER_BYTES_MAX = 768 << 10
CUT = "bellwether.truncated_from_bytes"


class Verdicts:
    """Collects named verdicts and what each rests on."""

    def __init__(self):
        self.rows = []

    def add(self, name: str, good: bool, detail: str):
        self.rows.append((name, bool(good), detail))
        print(f"  {'ok  ' if good else 'FAIL'} {name}: {detail}", flush=True)

    def failed(self) -> int:
        return sum(not good for _, good, _ in self.rows)


def tables(store: Path) -> list:
    """Returns the names of all Delta tables under the store's folder."""
    return sorted(str(log.parent.relative_to(store)) for log in store.rglob("_delta_log") if log.is_dir())


def rows_of(store: Path, name: str) -> int:
    """Counts the rows of a table as its log tells them, cheap enough to poll; 0 where there is no table yet."""
    try:
        return sum(DeltaTable(str(store / name)).get_add_actions(flatten=True).column("num_records").to_pylist())
    except Exception:  # no table yet, or a log that is being written
        return 0


def connect():
    """Returns a database that knows the words of the recomputations."""
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; CREATE SCHEMA recomputed")
    for macro in MACROS.strip().split(";\n"):
        db.execute(macro)
    return db


def open_store(db, store: Path, verdicts: Verdicts) -> set:
    """Opens every table with deltalake and hands it to DuckDB under its name, slashes as underscores; returns the names."""
    names = tables(store)
    read = []
    for name in names:
        try:
            table = DeltaTable(str(store / name)).to_pyarrow_table()
            db.register(f"arrow_{name}", table)
            db.execute(f'CREATE TABLE "{name.replace("/", "_")}" AS SELECT * FROM "arrow_{name}"')
            db.unregister(f"arrow_{name}")
            read.append(f"{name} {table.num_rows}")
        except Exception as error:
            verdicts.add(f"table {name} is readable", False, repr(error)[:300])
    verdicts.add("deltalake and duckdb read every table", names and len(read) == len(names), ", ".join(read) or "no table")
    return {n.replace("/", "_") for n in names}


def load_truth(db, samples: dict, events: dict):
    db.register("arrow_samples", pa.table(samples))
    db.register("arrow_events", pa.table(events))
    db.execute("CREATE SCHEMA truth")
    db.execute("CREATE TABLE truth.samples AS SELECT * FROM arrow_samples")
    db.execute("CREATE TABLE truth.events_text AS SELECT * FROM arrow_events")
    db.unregister("arrow_samples")
    db.unregister("arrow_events")
    # What the recomputations read: the shapes that users query.
    db.execute("""CREATE VIEW truth.metrics AS
        SELECT name, labels::JSON::MAP(VARCHAR, VARCHAR) AS labels, make_timestamp(ts) AS ts, value FROM truth.samples""")
    db.execute("""CREATE VIEW truth.events AS
        SELECT make_timestamp(ts) AS ts, id, source, type, subject, outcome, duration_ms, severity,
               attributes::JSON::MAP(VARCHAR, VARCHAR) AS attributes, data FROM truth.events_text""")


def difference(db, ours: str, theirs: str):
    """Returns (rows missing from `theirs`, rows too many in it, examples) of two selects, as multisets."""
    db.execute(f"CREATE OR REPLACE TEMP TABLE missing AS ({ours}) EXCEPT ALL ({theirs})")
    db.execute(f"CREATE OR REPLACE TEMP TABLE extra AS ({theirs}) EXCEPT ALL ({ours})")
    count = lambda t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0]
    examples = [(t, row) for t in ("missing", "extra") for row in db.execute(f"SELECT * FROM {t} LIMIT {SHOWN}").fetchall()]
    return count("missing"), count("extra"), examples


def same(db, verdicts: Verdicts, name: str, ours: str, theirs: str):
    try:
        missing, extra, examples = difference(db, ours, theirs)
        total = db.execute(f"SELECT count(*) FROM ({ours})").fetchone()[0]
    except duckdb.Error as error:
        return verdicts.add(name, False, str(error)[:400])
    detail = f"{total} expected, {missing} missing, {extra} too many"
    verdicts.add(name, total > 0 and missing == extra == 0, detail + (f"; such as {examples}" if examples else ""))


def sorted_map(column: str) -> str:
    """Returns SQL that turns a map into its entries in the order of their names."""
    return f"list_sort(map_entries({column}))"


def check_samples(db, verdicts: Verdicts):
    # The ids and labels are joined in DuckDB, so a series without its row, or with two, shows here.
    same(db, verdicts, "samples are exactly the good ones",
         f"SELECT name, {sorted_map('labels::JSON::MAP(VARCHAR, VARCHAR)')} AS labels, ts, value FROM truth.samples",
         f"SELECT s.name, {sorted_map('s.labels')} AS labels, epoch_us(m.ts) AS ts, m.value"
         " FROM samples m LEFT JOIN series s USING (series_id)")
    try:
        count, ids, distinct = db.execute(
            f"SELECT count(*), count(DISTINCT series_id), count(DISTINCT (name, {sorted_map('labels')})) FROM series").fetchone()
        verdicts.add("every series has one id and one row", count == ids == distinct > 0, f"{count} rows, {ids} ids, {distinct} distinct")
        wrong = db.execute("SELECT count(*) FROM samples WHERE day::VARCHAR <> strftime(ts::TIMESTAMP, '%Y-%m-%d')").fetchone()[0]
        verdicts.add("samples lie in the partition of their day", wrong == 0, f"{wrong} do not")
    except duckdb.Error as error:
        verdicts.add("every series has one id and one row", False, str(error)[:400])


def check_events(db, verdicts: Verdicts):
    columns = "id, source, type, subject, outcome, duration_ms, severity"
    same(db, verdicts, "events are exactly the good ones",
         f"SELECT ts, {columns}, {sorted_map('attributes::JSON::MAP(VARCHAR, VARCHAR)')} AS attributes FROM truth.events_text",
         f"SELECT epoch_us(ts) AS ts, {columns}, {sorted_map('attributes')} AS attributes FROM events")
    try:
        pairs = db.execute("SELECT t.data, e.data FROM truth.events_text t JOIN events e USING (source, id)").fetchall()
        wrong = [p for p in pairs if (json.loads(p[0]) if p[0] else None) != (json.loads(p[1]) if p[1] else None)]
        verdicts.add("the data of events is kept", pairs and not wrong, f"{len(pairs)} compared, {len(wrong)} differ {wrong[:1]}")
    except (duckdb.Error, ValueError) as error:
        verdicts.add("the data of events is kept", False, str(error)[:400])


# ---- dead letters

def ends_for(admin, partitions: list, isolation) -> dict:
    """Returns the offset at which each partition ends for readers of that isolation.

    A partition of a topic that was just made may have no leader yet; that is waited for."""
    deadline = time.monotonic() + LEADER_S_MAX
    while True:
        asked = admin.list_offsets({p: OffsetSpec.latest() for p in partitions}, isolation_level=isolation)
        try:
            return {p: told.result(30).offset for p, told in asked.items()}
        except KafkaException as error:
            if error.args[0].code() not in LEADERLESS or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def await_markers(admin, partitions: list):
    """Waits until all that stands in the partitions now is committed or aborted for their readers too.

    A commit is answered once the coordinator has noted it; the markers reach the partitions a moment later. Of a
    transaction that nobody ends, readers see nothing, so the wait has an end.
    """
    written, deadline = ends_for(admin, partitions, IsolationLevel.READ_UNCOMMITTED), time.monotonic() + MARKERS_S_MAX
    while time.monotonic() < deadline:
        decided = ends_for(admin, partitions, IsolationLevel.READ_COMMITTED)
        if all(decided[p] >= end for p, end in written.items()):
            return
        time.sleep(0.02)


def read_topic(bootstrap: str, topic: str, isolation: str = "read_committed") -> list:
    """Reads a topic from its beginning to its end, committed records only unless told otherwise."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "e2e-reader", "enable.auto.commit": False,
                         "isolation.level": isolation, "enable.partition.eof": True, "fetch.wait.max.ms": 20, "log_level": 2,
                         "fetch.message.max.bytes": 64 << 20, "fetch.max.bytes": 128 << 20, "receive.message.max.bytes": 256 << 20})
    found, ended = [], set()
    try:
        known = consumer.list_topics(topic, timeout=10).topics[topic]
        partitions = list(known.partitions) if known.error is None else []
        if isolation == "read_committed":
            await_markers(AdminClient({"bootstrap.servers": bootstrap, "log_level": 2}), [TopicPartition(topic, p) for p in partitions])
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        deadline = time.monotonic() + READ_S_MAX
        while len(ended) < len(partitions):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{topic}: no end within {READ_S_MAX} s")
            # Returns when it has them all or the time is up: a short time, for the end is not a record.
            batch = consumer.consume(10_000, timeout=0.05)
            for record in batch:
                if record.error() is None:
                    found.append(record)
                elif record.error().name() == "_PARTITION_EOF":
                    ended.add(record.partition())
                else:
                    raise RuntimeError(f"{topic}: {record.error()}")
    finally:
        consumer.close()
    return found


def check_dead_letters(bootstrap: str, prefix: str, broken: list, schema: Path, verdicts: Verdicts):
    """`broken`: (topic, partition, offset, key, value, headers, way) of every broken record."""
    expected = {(f"{prefix}.{t}", p, o): rest for t, p, o, *rest in broken}
    letters = [letter for t in truth.FORMATS for letter in read_topic(bootstrap, f"{prefix}.{t}.dlq")]
    validator = Draft202012Validator(json.loads(schema.read_text())) if schema.exists() else None
    seen, changed, misfit, invalid = Counter(), [], [], []
    for letter in letters:
        headers = [(name, value) for name, value in letter.headers() or []]
        ours = {n: v.decode(errors="replace") for n, v in headers if n.startswith("__connect.errors.")}
        at = (ours.get("__connect.errors.topic"), int(ours.get("__connect.errors.partition", -1)), int(ours.get("__connect.errors.offset", -1)))
        seen[at] += 1
        if at not in expected:
            continue
        key, value, original, way = expected[at]
        theirs = [(n, v) for n, v in headers if not n.startswith("__connect.errors.") and n != CUT]
        # One larger than a topic takes is cut, and says so.
        if len(value) > LETTER_BYTES_MAX:
            value = value[:LETTER_BYTES_MAX] if dict(headers).get(CUT) == str(len(value)).encode() else value
        kept = (letter.key() or None, letter.value() or b"", sorted(theirs)) == (key or None, value, sorted(original)) or way in truth.NOT_WHOLE
        if not kept or letter.topic() != f"{at[0]}.dlq":
            changed.append((at, way))
        reason, sentence = ours.get("__connect.errors.exception.class.name"), ours.get("__connect.errors.exception.message")
        if reason not in (truth.BROKEN | truth.HEAVY)[way] or not sentence:
            misfit.append((at[0], way, reason, sentence))
        if validator and (error := next(validator.iter_errors({n: (v or b"").decode(errors="replace") for n, v in headers}), None)):
            invalid.append(error.message[:200])
    missing, extra, twice = expected.keys() - seen.keys(), seen.keys() - expected.keys(), [k for k, n in seen.items() if n > 1]
    ways = Counter(e[3] for e in expected.values())
    verdicts.add("dead letters are exactly the broken records, each once", expected and not (missing or extra or twice),
                 f"{len(expected)} expected in {len(ways)} ways, {len(letters)} read, {len(missing)} missing, {len(extra)} too many, {len(twice)} twice"
                 + (f"; missing such as {[(k, expected[k][3]) for k in sorted(missing)[:SHOWN]]}" if missing else "")
                 + (f"; too many such as {sorted(extra, key=str)[:SHOWN]}" if extra else ""))
    verdicts.add("dead letters keep key, value and headers", letters and not changed, f"{len(changed)} differ {changed[:SHOWN]}")
    verdicts.add("dead letters carry the right reason", letters and not misfit, f"{len(misfit)} do not {misfit[:SHOWN]}")
    verdicts.add("dead letters' headers fit their schema", validator and letters and not invalid, f"{len(invalid)} do not {invalid[:SHOWN]}")
    return expected


def check_rejected(db, expected: dict, verdicts: Verdicts):
    try:
        rows = Counter(db.execute("SELECT topic, partition, \"offset\" FROM rejected").fetchall())
    except duckdb.Error as error:
        return verdicts.add("table `rejected` holds every broken record once", False, str(error)[:400])
    wrong = rows.keys() ^ expected.keys()
    twice = [k for k, n in rows.items() if n > 1]
    verdicts.add("table `rejected` holds every broken record once", expected and not wrong and not twice,
                 f"{sum(rows.values())} rows, {len(wrong)} differ, {len(twice)} twice")


# ---- views

MACROS = """
CREATE OR REPLACE MACRO exact_quantile(xs, q) AS list_aggregate(xs, 'quantile_cont', q);
-- A small group's quantile is exact; a greater one's lies in a histogram, whose documented bound is one in 256.
CREATE OR REPLACE MACRO quantile_slack(xs, q) AS CASE WHEN len(xs) <= 128 THEN 0 ELSE abs(exact_quantile(xs, q)) / 256 END;
CREATE OR REPLACE MACRO quantile_lo(xs, q) AS exact_quantile(xs, q) - quantile_slack(xs, q);
CREATE OR REPLACE MACRO quantile_hi(xs, q) AS exact_quantile(xs, q) + quantile_slack(xs, q);
-- Differences of whole microseconds: seconds since 1970 would lose their last digits.
CREATE OR REPLACE MACRO seconds_since(ts, start) AS (epoch_us(ts) - epoch_us(start)) / 1e6;
"""


def recomputation(path: Path):
    """Returns (keys, tolerances by column, sql) of a file: `-- key: a, b` and `-- tolerance: column relative` lines.

    A column `x__lo` beside `x__hi` says where the stored `x` must lie."""
    text = path.read_text()
    keys = [k.strip() for line in re.findall(r"^-- key:(.*)$", text, re.M) for k in line.split(",")]
    tolerances = {c: float(t) for c, t in re.findall(r"^-- tolerance: (\w+) (\S+)$", text, re.M)}
    return keys, tolerances, text.rstrip().rstrip(";")


def mismatch(column: str, exact: set, tolerance: float) -> str:
    """Returns SQL that is true where a stored column is not the recomputed one."""
    theirs = f"theirs.{column}"
    if f"{column}__lo" in exact:
        lo, hi = f"ours.{column}__lo", f"ours.{column}__hi"
        inside = f"{theirs} BETWEEN {lo} - abs({lo}) * {tolerance} AND {hi} + abs({hi}) * {tolerance}"
        return f"(({theirs} IS NULL) <> ({lo} IS NULL) OR NOT coalesce({inside}, true))"
    ours = f"ours.{column}"
    if tolerance:
        near = f"abs({theirs} - {ours}) <= greatest(1e-9, {tolerance} * abs({ours}))"
        return f"(({theirs} IS NULL) <> ({ours} IS NULL) OR NOT coalesce({near}, true))"
    return f"({theirs} IS DISTINCT FROM {ours})"


def recompute(db, path: Path, through_us: int) -> int:
    """Makes the table `recomputed.<view>` of a file: the windows that end by then; returns its rows."""
    sql = recomputation(path)[2]
    db.execute(f"CREATE TABLE recomputed.{path.stem} AS SELECT * FROM ({sql}) WHERE epoch_us(window_end) <= {through_us}")
    # Read to its end: a result half read would keep the connection to itself.
    [(rows,)] = db.execute(f"SELECT count(*) FROM recomputed.{path.stem}").fetchall()
    return rows


def check_view(db, name: str, path: Path, verdicts: Verdicts):
    keys, tolerances, _ = recomputation(path)
    title = f"view {name} equals its recomputation"
    try:
        db.execute(f"CREATE OR REPLACE TEMP TABLE ours AS FROM recomputed.{name}")
        db.execute(f'CREATE OR REPLACE TEMP TABLE theirs AS SELECT * FROM "{name}"')
        described = {r[0]: r[1] for r in db.execute("DESCRIBE ours").fetchall()}
        stored = {r[0]: r[1] for r in db.execute("DESCRIBE theirs").fetchall()}
        for column, kind in stored.items():
            if kind == "TIMESTAMP WITH TIME ZONE":
                db.execute(f"ALTER TABLE theirs ALTER {column} TYPE TIMESTAMP USING {column}::TIMESTAMP")
        columns = {re.sub("__(lo|hi)$", "", c) for c in described} - set(keys)
        # `day` partitions the table; it is not a column of the view.
        if absent := (columns | set(keys)) ^ (stored.keys() - {"day"}):
            return verdicts.add(title, False, f"columns differ: {sorted(absent)}")
        on = " AND ".join(f"ours.{k} IS NOT DISTINCT FROM theirs.{k}" for k in keys)
        default = lambda c: 1e-9 if described.get(c) == "DOUBLE" or f"{c}__lo" in described else 0
        wrong = {c: mismatch(c, set(described), tolerances.get(c, default(c))) for c in sorted(columns)}
        one = lambda text: db.execute(text).fetchone()[0]
        total, rows = one("SELECT count(*) FROM ours"), one("SELECT count(*) FROM theirs")
        missing = one(f"SELECT count(*) FROM ours ANTI JOIN theirs ON {on}")
        extra = one(f"SELECT count(*) FROM theirs ANTI JOIN ours ON {on}")
        twice = one(f"SELECT count(*) FROM (SELECT 1 FROM theirs GROUP BY {', '.join(keys)} HAVING count(*) > 1)")
        differ = {c: n for c, test in wrong.items() if (n := one(f"SELECT count(*) FROM ours JOIN theirs ON {on} WHERE {test}"))}
        detail = f"{total} rows expected, {rows} there, {missing} missing, {extra} too many, {twice} twice, differing {differ or 'none'}"
        if differ:
            column = next(iter(differ))
            shown = db.execute(f"SELECT ours.*, theirs.{column} FROM ours JOIN theirs ON {on} WHERE {wrong[column]} LIMIT 2").fetchall()
            detail += f"; {column} such as {shown}"
        elif missing or extra:
            side, other = ("ours", "theirs") if missing else ("theirs", "ours")
            detail += f"; such as {db.execute(f'SELECT * FROM {side} ANTI JOIN {other} ON {on} ORDER BY ALL LIMIT 2').fetchall()}"
        verdicts.add(title, total > 0 and not (missing or extra or twice or differ), detail)
    except duckdb.Error as error:
        verdicts.add(title, False, str(error)[:400])


# ---- effects

def kcat_topic(bootstrap: str, topic: str, isolation: str = "read_committed") -> list:
    """Reads a topic with kcat, committed records only unless told otherwise; every record as kcat's JSON envelope."""
    result = subprocess.run(
        ["kcat", "-C", "-b", bootstrap, "-t", topic, "-o", "beginning", "-e", "-q", "-J", "-X", f"isolation.level={isolation}", "-X", "fetch.wait.max.ms=20"],
        capture_output=True, timeout=120, check=False)
    if result.returncode:
        raise RuntimeError(f"kcat: {result.stderr.decode(errors='replace')[-300:]}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def headers_of(envelope: dict) -> dict:
    flat = envelope.get("headers") or []
    return dict(zip(flat[::2], flat[1::2]))


def check_effects(db, present: set, bootstrap: str, prefix: str, kind: str, schema: Path, verdicts: Verdicts, may_be_none=False) -> list:
    """Each id once, valid against the schema, named so in its CloudEvents headers, and the same set as the table's."""
    plural = f"{kind}s" if kind != "anomaly" else "anomalies"
    try:
        envelopes = kcat_topic(bootstrap, f"{prefix}.{plural}")
    except (RuntimeError, subprocess.SubprocessError) as error:
        verdicts.add(f"{plural} are readable by kcat", False, str(error)[:300])
        return []
    records = [json.loads(e["payload"]) for e in envelopes]
    ids = Counter(r.get("id") for r in records)
    twice = [i for i, n in ids.items() if n > 1]
    verdicts.add(f"{plural}: each once", (records or may_be_none) and not twice, f"{len(records)} records, {len(twice)} ids twice {twice[:SHOWN]}")
    validator = Draft202012Validator(json.loads(schema.read_text()))
    invalid = [f"{e.json_path}: {e.message}"[:200] for r in records if (e := next(validator.iter_errors(r), None))]
    verdicts.add(f"{plural}: valid against {schema.name}", (records or may_be_none) and not invalid, f"{len(invalid)} are not {invalid[:SHOWN]}")
    misnamed = [r.get("id") for e, r in zip(envelopes, records) if headers_of(e).get("ce_id") != r.get("id") or "ce_type" not in headers_of(e)]
    verdicts.add(f"{plural}: CloudEvents headers", (records or may_be_none) and not misnamed, f"{len(misnamed)} wrong {misnamed[:SHOWN]}")
    if plural in present:
        stored = Counter(row[0] for row in db.execute(f"SELECT id FROM {plural}").fetchall())
        verdicts.add(f"{plural}: the table holds what the topic does", stored == ids,
                     f"{sum(stored.values())} rows, {len(ids.keys() - stored.keys())} only on the topic, {len(stored.keys() - ids.keys())} only in the table")
    else:
        verdicts.add(f"{plural}: the table holds what the topic does", False, "there is no such table")
    return records


def check_decisions(decisions: list, verdicts: Verdicts):
    wrong = []
    by_target = {}
    for d in sorted(decisions, key=lambda d: d["epoch"]):
        by_target.setdefault(d["target"], []).append(d["epoch"])
    for target, epochs in by_target.items():
        if epochs != list(range(epochs[0], epochs[0] + len(epochs))):
            wrong.append((target, epochs[:10]))
    verdicts.add("decisions: epochs of a target grow by one", decisions and not wrong, f"{len(by_target)} targets {wrong[:SHOWN]}")
