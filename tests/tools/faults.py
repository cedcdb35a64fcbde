#!/usr/bin/env python3
"""Faults between Bellwether and a real Kafka, each placed on purpose, and what must come of each: exactly what the
records call for, as if nothing had happened, or a loud stop that names what is lost.

Every fault is a function named after it; the numbers are those of the project's list of faults. The broker is a real
one, the program is the one that ships, and the oracle is that of the end-to-end test. A proxy (proxy.py) between the
two places a fault exactly between two steps of the protocol. Functions named `control_…` show that the checks notice
what they are for. Ends with `faults: N of M passed`; exit code 1 unless all did. Run it through `make test`, or by
hand: see --help.
"""

import argparse
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import faults_controls
import faults_effects
import faults_input
import faults_instances
import faults_load
import faults_reload
from stage import Stage

ROOMS = (faults_effects, faults_input, faults_instances, faults_load, faults_reload, faults_controls)
# These stop their broker, so none may play beside them; the controls come after them, for two lanes of like length.
ALONE = ("fault_11", "fault_18", "instances_06", "control")


def faults() -> dict:
    """Returns every fault and control by name, in the order of their numbers."""
    found = {n: f for room in ROOMS for n, f in vars(room).items() if re.match(r"(fault_\d+|instances_\d+|reload_\d+|control)_", n)}
    return dict(sorted(found.items(), key=lambda item: (item[0].startswith("control"), item[0])))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the bellwether program")
    parser.add_argument("--only", help="faults by number, or parts of names, separated by commas")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--long", action="store_true", help="outages of minutes, more of everything that is repeated")
    parser.add_argument("--verbose", action="store_true", help="say what was found right, too")
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="work there and leave every folder (default: those of what failed, in a temporary one)",
    )
    chosen = parser.parse_args()
    every = faults()
    wanted = [w for w in (chosen.only or "").split(",") if w]
    fits = lambda name, word: name.startswith(f"fault_{int(word):02}_") if word.isdigit() else word in name
    chosen.faults = {n: f for n, f in every.items() if not wanted or any(fits(n, w) for w in wanted)}
    if not chosen.faults:
        parser.error(f"expected --only to name one of: {', '.join(every)}")
    return chosen


def play(stage, name, fault) -> bool:
    """Plays one fault and prints what was found, in one piece; says whether all was as it has to be."""
    begun = time.monotonic()
    stage.begin()
    try:
        fault(stage)
    except Exception as error:
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == fault.__name__]
        line = f"line {where[-1].lineno}: " if where else ""
        stage.check("the fault can be played to its end", False, f"{line}{type(error).__name__}: {error}"[:2000])
    try:
        stage.end()
    except Exception as error:
        stage.check("it leaves nothing behind", False, f"{type(error).__name__}: {error}"[:500])
    failed, checked = stage.verdicts.failed(), len(stage.verdicts.rows)
    verdict = f"{'FAILED' if failed else 'passed'}: {checked - failed} of {checked} checks"
    print(f"== {name}\n{stage.verdicts.text()}   {verdict}, {time.monotonic() - begun:.0f} s", flush=True)
    return not failed


def play_all(chosen, work: Path, playing: dict, results: dict, stages: list):
    """Plays some faults, one after the other, on a broker of their own; notes their results."""
    if not playing:
        return
    try:
        stage = Stage(chosen.binary, work, chosen.seed, chosen.long, chosen.verbose, bool(chosen.keep))
    except Exception:
        return traceback.print_exc()
    stages.append(stage)
    try:
        for name, fault in playing.items():
            results[name] = play(stage, name, fault)
    finally:
        stage.broker.remove()


def play_in_lanes(chosen, work: Path) -> dict:
    """Plays every fault asked for, two at a time, since most of the time is spent waiting; returns their results."""
    lanes, results, stages = {"alone": {}, "together": {}}, {}, []
    for name, fault in chosen.faults.items():
        lanes["alone" if name.startswith(ALONE) else "together"][name] = fault
    playing = [
        threading.Thread(target=play_all, args=(chosen, work / lane, part, results, stages), daemon=True)
        for lane, part in lanes.items()
    ]
    try:
        for lane in playing:
            lane.start()
        for lane in playing:
            lane.join()
    except KeyboardInterrupt:
        for stage in stages:
            stage.abandon()
        raise
    return results


def interrupt(*_):
    raise KeyboardInterrupt


def main() -> int:
    chosen = arguments()
    if shutil.which("kcat") is None:
        print("faults: expected kcat on PATH, found none; type: tests/tools/setup.sh test", file=sys.stderr)
        return 2
    work = Path(chosen.keep) if chosen.keep else Path(tempfile.mkdtemp(prefix="bellwether-faults-"))
    print(f"faults: --seed {chosen.seed}; folder {work}", flush=True)
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        results = play_in_lanes(chosen, work)
    except KeyboardInterrupt:
        print("faults: interrupted", file=sys.stderr)
        return 130
    failed = [name for name in chosen.faults if not results.get(name)]
    for name in failed:
        print(f"FAIL {name}{'' if name in results else ', not played'}")
    if not failed and not chosen.keep:
        shutil.rmtree(work, ignore_errors=True)
    passed = len(chosen.faults) - len(failed)
    print(f"faults: {passed} of {len(chosen.faults)} passed in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
