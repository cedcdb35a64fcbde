"""Reloads under load: what stays goes on as if nothing had happened, what changed begins at a window's border, and a
configuration that is wrong changes nothing. Crashes come on the way."""

import json
import shutil
import signal
import urllib.request
from urllib.error import HTTPError

from deltalake import DeltaTable

import checks
import e2e
import stage as stages

# Counts the rows of requests, the good ones, by service and window; every column of the shipped views stays as it is.
COUNT = """CREATE MATERIALIZED VIEW {name} WITH (lateness = '{lateness}s'{options}) AS
SELECT window_start, window_end, labels['service'] AS service, count(*) AS n{more}
FROM metrics WHERE name = 'request_duration_seconds' AND value {value}
GROUP BY tumble(ts, INTERVAL '{seconds} seconds'), labels['service']"""


def reload_01_under_load_with_crashes(stage):
    """Views come, change and go while records come in; each is held against DuckDB, the shipped ones too."""
    scene = stage.scene("r01", records=30_000)
    views = scene.work / "views"
    shutil.copytree(e2e.ROOT / "sql" / "views", views)
    scene.reconfigure(more=f'{stages.AWAKE}views = "{views}"\n')
    define(views, "changing", seconds=10)
    define(views, "brief", seconds=10)
    scene.start()
    scene.load(per_second=2000)
    scene.expect("rows of the first views", lambda: checks.rows_of(scene.store, "changing") > 20, 60)

    define(views, "changing", seconds=0)
    refused(stage, scene, "changing.sql", "above zero")
    define(views, "changing", seconds=30)
    (views / "brief.sql").unlink()
    define(views, "filled", seconds=10, options=", backfill = '1 day'", value="> -1")
    define(views, "fresh", seconds=10, value="> -2")
    report = reload(scene)
    stage.check(
        "the answer names what was changed",
        (report.get("changed"), report.get("new"), report.get("gone")) == (["changing"], ["filled", "fresh"], ["brief"]),
        json.dumps(report),
    )
    scene.bellwether.kill()
    scene.start()
    scene.expect("the new views go on", lambda: checks.rows_of(scene.store, "fresh") > 20, 60)

    # By the signal, and what the answer would have said stands in the log.
    define(views, "fresh", seconds=20, value="> -2")
    define(views, "brief", seconds=10)
    scene.bellwether.process.send_signal(signal.SIGHUP)
    scene.expect("the signal is heeded", lambda: "changed=\"fresh\"" in scene.bellwether.log_tail(200), 30)
    define(views, "changing", seconds=30, more=", max(value) AS most")
    refused(stage, scene, "changing", "columns")
    define(views, "changing", seconds=30)
    db = scene.catch_up()
    stage.check("the service was started twice", scene.bellwether.starts == 2, f"{scene.bellwether.starts} starts")
    scene.stop()
    compare(stage, scene, db)
    e2e.check_all(scene.chosen, scene.feed, db, scene.store, scene.through, scene.verdicts)


def define(views, name, seconds, options="", value=">= 0", more=""):
    text = COUNT.format(name=name, lateness=e2e.LATENESS_S_MAX, options=options, seconds=seconds, value=value, more=more)
    (views / f"{name}.sql").write_text(text + ";\n")


def post(scene) -> tuple:
    request = urllib.request.Request(f"http://127.0.0.1:{scene.bellwether.port}/-/reload", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def reload(scene) -> dict:
    status, report = post(scene)
    if status != 200:
        raise RuntimeError(f"the reload was refused: {report}")
    return report


def refused(stage, scene, *words):
    """A reload that must be refused, with these words, and must change nothing."""
    shown = lambda: {view["view"]: (view["window"], view["plan"]) for view in json.loads(scene.bellwether.get("/views")[1])}
    before = shown()
    status, answer = post(scene)
    message = answer.get("error", {}).get("message", "")
    stage.check("what is wrong is refused and named", status == 400 and all(w in message for w in words), f"{status} {message}")
    stage.check("a refused reload changes no view", shown() == before, "")


def compare(stage, scene, db):
    """Holds the views of this scene against the truth: no row wrong or twice, no request left out, whatever changed."""
    db.execute("""CREATE TEMP VIEW requests AS SELECT epoch_us(ts) AS ts, labels['service'] AS service
        FROM truth.metrics WHERE name = 'request_duration_seconds'""")
    for name, widths in [("changing", (10, 30)), ("filled", (10,)), ("fresh", (10, 20)), ("brief", (10,))]:
        rows = DeltaTable(str(scene.store / name)).to_pyarrow_table()
        db.register("arrow_rows", rows)
        db.execute("""CREATE OR REPLACE TEMP TABLE stored AS SELECT epoch_us(window_start) AS start,
            epoch_us(window_end) AS until, service, n FROM arrow_rows""")
        db.unregister("arrow_rows")
        wrong = []
        for width in widths:
            micros = width * 1_000_000
            wrong += db.execute(f"""SELECT * FROM (FROM stored WHERE until - start = {micros}) ANTI JOIN
                (SELECT ts // {micros} * {micros} AS start, service, count(*) AS n FROM requests GROUP BY ALL)
                USING (start, service, n)""").fetchall()
        [(twice, first)] = db.execute(
            "SELECT count(*) - count(DISTINCT (start, until, service)), min(start) FROM stored"
        ).fetchall()
        stage.check(f"every row of `{name}` is right, and there once", not wrong and not twice, f"{len(wrong)} wrong {wrong[:3]}, {twice} twice")
        # `fresh` begins where the others stood; the others hold every request from the first, `brief` too, which was
        # gone for a while and goes on where it stood.
        first, end = first if name == "fresh" else 0, scene.through // micros * micros
        [(due,)] = db.execute("SELECT count(*) FROM requests WHERE ts >= ? AND ts < ?", [first, end]).fetchall()
        # Where the width changed, the first wide window may hold requests of narrow ones that were emitted before.
        [(counted, twofold)] = db.execute(
            """SELECT sum(n), coalesce(sum(n) FILTER (EXISTS (FROM stored b WHERE a.service = b.service
                AND b.start <= a.start AND a.until <= b.until AND b.until - b.start > a.until - a.start)), 0) FROM stored a"""
        ).fetchall()
        stage.check(f"`{name}` leaves no request out", counted - twofold == due, f"{counted} counted, {twofold} of them twofold, {due} there")
