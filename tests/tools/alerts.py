"""The alerts that the records call for, by a model of its own: every shipped rule over the recomputed views, tick by tick.

The model is written from the documented behaviour: rules are evaluated at every tick over the newest closed window of
the views they read, and an instance goes pending → firing → resolved. Knows nothing of how the program does it.
"""

import re
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import truth

TICK_US = 10_000_000
SHOWN = 3
UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}


class Rule:
    def __init__(self, path: Path, views: set):
        text = path.read_text()
        self.name = path.stem
        self.for_us = duration_us(header(text, "for"))
        self.keep_us = duration_us(header(text, "keep_firing_for"))
        self.sql = "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip().rstrip(";")
        self.views = sorted(set(re.findall(r"\w+", self.sql)) & views)


def header(text: str, key: str):
    found = re.search(rf"^-- {key}:\s*(\S+)", text, re.M)
    return found and found[1]


def duration_us(text) -> int:
    return int(text[:-1]) * UNITS_US[text[-1]] if text else 0


def slide_us(view: str) -> int:
    """Reads how far apart a view's windows are off the end of its name: `_30s`, `_1m`, `_5m_by_1m`."""
    return duration_us(re.search(r"(\d+[smh])$", view)[1])


def expected(db, root: Path, recomputed: dict, through_us: int) -> tuple:
    """Returns (transitions that must be, transitions that may be); they differ where a quantile, which is known within a
    bound only, decides. `recomputed`: by view, the table of its rows in schema `recomputed`."""
    first = min(at for table in recomputed.values() if (at := db.execute(f"SELECT epoch_us(min(window_end)) FROM {table}").fetchone()[0]))
    ticks = range(-(-first // TICK_US) * TICK_US, through_us + 1, TICK_US)
    rules = [Rule(path, set(recomputed)) for path in sorted((root / "sql" / "alerts").glob("*.sql"))]
    low, high = (Counter(t for rule in rules for t in transitions(rule, ticks, instances(db, rule, recomputed, bound))) for bound in ("lo", "hi"))
    return low & high, low | high


def instances(db, rule: Rule, recomputed: dict, bound: str):
    """Returns a function from a tick to the label sets that the rule's query yields there."""
    ends, yields = set(), {}
    for view in rule.views:
        ends |= {(view, row[0]) for row in db.execute(f"SELECT DISTINCT epoch_us(window_end) FROM {recomputed[view]}").fetchall()}

    def at(tick: int) -> frozenset:
        # Only the newest window that ended within one slide is seen; an older one is no news.
        newest = tuple(max((e for v, e in ends if v == view and tick - slide_us(view) < e <= tick), default=0) for view in rule.views)
        if newest not in yields:
            yields[newest] = query(db, rule, recomputed, bound, newest)
        return yields[newest]

    return at


def query(db, rule: Rule, recomputed: dict, bound: str, newest: tuple) -> frozenset:
    tables = []
    for view, end in zip(rule.views, newest):
        columns = [row[0] for row in db.execute(f"DESCRIBE {recomputed[view]}").fetchall()]
        picked = [f"{c} AS {c[:-4]}" if c.endswith(f"__{bound}") else c for c in columns if c.endswith(f"__{bound}") or not re.search("__(lo|hi)$", c)]
        tables.append(f"{view} AS (SELECT {', '.join(picked)} FROM {recomputed[view]} WHERE epoch_us(window_end) = {end})")
    found = db.execute(f"WITH {', '.join(tables)} {rule.sql}")
    # Text columns are the labels of an instance.
    texts = [i for i, column in enumerate(found.description) if str(column[1]) in ("VARCHAR", "STRING")]
    names = [found.description[i][0] for i in texts]
    return frozenset(tuple(sorted((name, row[i] or "") for name, i in zip(names, texts))) for row in found.fetchall())


def transitions(rule: Rule, ticks, instances_at):
    """Yields (rule, labels, state, at, active since), times in microseconds, of every transition."""
    open_, absent = {}, {}
    for tick in ticks:
        now = instances_at(tick)
        for labels in sorted(open_.keys() - now):
            since, firing = open_[labels]
            if not firing or tick - absent.setdefault(labels, tick) >= rule.keep_us:
                del open_[labels]
                absent.pop(labels, None)
                yield rule.name, labels, "resolved", tick, since
        for labels in sorted(now):
            absent.pop(labels, None)
            since, firing = open_.get(labels, (tick, False))
            fires = firing or tick - since >= rule.for_us
            if fires and not firing:
                yield rule.name, labels, "firing", tick, since
            elif labels not in open_:
                yield rule.name, labels, "pending", tick, since
            open_[labels] = (since, fires)


def micros(stamp: str) -> int:
    at = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    return round((at - datetime.fromtimestamp(0, timezone.utc)).total_seconds()) * 1_000_000


def of_record(alert: dict) -> tuple:
    return alert["rule"], tuple(sorted(alert["labels"].items())), alert["state"], micros(alert["at"]), micros(alert["active_since"])


def check(alerts: list, must: Counter, may: Counter, verdicts):
    """The alerts said are those of the model, each transition at its time."""
    said = Counter(map(of_record, alerts))
    missing, extra = must - said, said - may
    verdicts.add("alerts are exactly those of the model", must and not missing and not extra,
                 f"{must.total()} expected, {said.total()} said, {missing.total()} missing {sorted(missing)[:SHOWN]}, {extra.total()} too many {sorted(extra)[:SHOWN]}")


def check_faults(alerts: list, model, verdicts):
    """Every injected fault fires its rule on its target, and is resolved once it is over; nothing else fires.

    `model`: the transitions to be, where the records may be too few for each fault to show; otherwise none."""
    of = lambda state: {(a["rule"], tuple(sorted(a["labels"].items()))) for a in alerts if a["state"] == state}
    fired, resolved, expected_ = of("firing"), of("resolved"), set()
    for name, (rule, labels, _, _) in truth.INCIDENTS.items():
        of_fault = lambda found: found[0] == rule and labels.items() <= dict(found[1]).items()
        if model is not None and not any(of_fault(t) and t[2] == "firing" for t in model):
            continue
        hit = set(filter(of_fault, fired))
        expected_ |= hit
        verdicts.add(f"fault `{name}` fires {rule} on its target and resolves", hit and hit <= resolved, f"fired {len(hit)}, resolved {len(hit & resolved)}")
    false = fired - expected_
    verdicts.add("no rule fires without a fault", alerts and not false, f"{len(false)} false {sorted(false)[:SHOWN]}")
