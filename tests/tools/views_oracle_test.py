#!/usr/bin/env python3
"""Shows that the oracle of the golden views notices what it is there for: copies of cases are spoilt one way at a time.

Ends with one line; exit code 1 if a spoilt copy passed, or a good one did not.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import views_oracle

TOOL = Path(views_oracle.__file__)
VIEWS = TOOL.parents[1] / "views"
CASE, VIEW = "tumble_late_rows", "requests_1m"


def rows_changed(change):
    """Returns a spoiler that changes the rows of the expected file."""
    def spoil(folder: Path):
        path = folder / f"{VIEW}.expected.ndjson"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    return spoil


def lines_changed(name: str, change):
    """Returns a spoiler that changes the lines of a file."""
    def spoil(folder: Path):
        path = folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    return spoil


def first_changed(change):
    """Returns a spoiler that changes columns of the first row: `change` gives them from what they are."""
    return rows_changed(lambda rows: [{**rows[0], **change(rows[0])}, *rows[1:]])


def sum_times(factor: float):
    return first_changed(lambda row: {"total_seconds": row["total_seconds"] * factor})


def by_time(lines: list) -> list:
    return sorted(lines, key=lambda line: json.loads(line)["ts"])


SPOILT = {
    "a count off by one": first_changed(lambda row: {"n": row["n"] + 1}),
    "a sum off by a millionth": sum_times(1 + 1e-6),
    "a float for a whole number": first_changed(lambda row: {"n": float(row["n"])}),
    "NULL for text": first_changed(lambda row: {"service": None}),
    "a window that begins a microsecond later": first_changed(
        lambda row: {"window_start": row["window_start"].replace(".000000Z", ".000001Z")}),
    "a row lost": rows_changed(lambda r: r[1:]),
    "a row doubled": rows_changed(lambda r: r[:1] + r),
    "two rows the wrong way round": rows_changed(lambda r: [r[1], r[0], *r[2:]]),
    "columns in another order": rows_changed(lambda r: [dict(reversed(row.items())) for row in r]),
    "a column more": rows_changed(lambda r: [{**row, "more": 1} for row in r]),
    "no expected file": lambda folder: (folder / f"{VIEW}.expected.ndjson").unlink(),
    "an expected file of no view": lambda folder: (folder / "other.expected.ndjson").write_text("{}\n"),
    "no oracle": lambda folder: (folder / "oracle.sql").unlink(),
    "a view without a comment": lines_changed(f"{VIEW}.sql", lambda lines: lines[1:]),
    "an oracle that counts late rows": lines_changed(
        "oracle.sql", lambda lines: [line for line in lines if line != "WHERE in_time"]),
    "no row comes late": lines_changed("metrics.ndjson", by_time),
    "one record less": lines_changed("metrics.ndjson", lambda lines: lines[1:]),
}
GOOD = {
    "as it is": lambda folder: None,
    "a sum off by its last digits": sum_times(1 + 1e-13),
}


def passes(folder: Path, spoil) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(VIEWS / CASE, folder)
    spoil(folder)
    return not views_oracle.judge(folder, write=False)[2]


def thinned(folder: Path):
    """Leaves out every third record of each input."""
    for path in folder.glob("*.ndjson"):
        if not path.name.endswith(".expected.ndjson"):
            path.write_text("".join(f"{x}\n" for i, x in enumerate(path.read_text().splitlines()) if i % 3))


def exit_codes(root: Path) -> list:
    """Returns the exit codes of the program over a folder of cases of which one is spoilt, before and after --write."""
    shutil.copytree(VIEWS / CASE, root / "good")
    shutil.copytree(VIEWS / CASE, root / "spoilt")
    SPOILT["a count off by one"](root / "spoilt")
    environment = {**os.environ, "BELLWETHER_VIEWS_DIR": str(root)}
    commands = ([sys.executable, str(TOOL), *arguments] for arguments in ([], ["good"], ["--write"], []))
    return [subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode for command in commands]


def main() -> int:
    wrong = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / CASE
        wrong += [f"passed: {name}" for name, spoil in SPOILT.items() if passes(folder, spoil)]
        wrong += [f"did not pass: {name}" for name, spoil in GOOD.items() if not passes(folder, spoil)]
        # Every case depends on its input: with a third of it missing, no expected file is right any more.
        cases = sorted(path for path in VIEWS.iterdir() if path.is_dir())
        for case in cases:
            copy = Path(work) / "thinned" / case.name
            shutil.copytree(case, copy)
            thinned(copy)
            views, _, told = views_oracle.judge(copy, write=False)
            seen = sum("places differ" in text for text in told)
            if views and seen < views:
                wrong.append(f"passed with a third of its input missing: {case.name}, {views - seen} of {views} views")
        codes = exit_codes(Path(work) / "cases")
        if codes != [1, 0, 0, 0]:
            wrong.append(f"expected exit codes [1, 0, 0, 0], got {codes}")
    for text in wrong:
        print(f"  {text}")
    print(f"oracle of the golden views: {len(SPOILT)} spoilt cases, {len(cases)} thinned cases, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
