#!/usr/bin/env python3
"""The input of the golden views (tests/views), made from seeds: what services, queues, workflows and deployments say.

    views_data.py [--check] [CASE…]

Writes metrics.ndjson and events.ndjson into the folder of each case; with --check compares them with what is there, and
exits 1 where they differ. Every case has a seed of its own (its name), so adding one changes no other.

Records are put in the order of their arrival: each comes some seconds after its time. In most cases that is less than
the lateness of the views, so that rows are out of order and none is late.
"""

import argparse
import json
import os
import random
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

ROOT = Path(os.environ.get("BELLWETHER_VIEWS_DIR") or Path(__file__).resolve().parents[1] / "views")
START = datetime(2026, 3, 1, 10, tzinfo=timezone.utc)
SECOND = 1_000_000
# Less than the runner's default lateness of ten seconds.
DELAY_S = 8.0
CASES = {}


def case(make):
    """Registers what makes the input of the case it is named after: a function to its records, by stream."""
    CASES[make.__name__] = make
    return make


def rfc3339(at_us: int) -> str:
    unit = "milliseconds" if at_us % 1000 == 0 else "microseconds"
    return (START + timedelta(microseconds=at_us)).isoformat(timespec=unit).replace("+00:00", "Z")


class Fleet:
    """Makes records. `at` is microseconds after START, and no two records of a case have the same."""

    def __init__(self, name: str):
        self.random = random.Random(f"bellwether/{name}")
        self.taken = set()
        self.ids = 0

    def moment(self, seconds: float) -> int:
        at = round(seconds * 1000) * 1000
        while at in self.taken:
            at += 1000
        self.taken.add(at)
        return at

    def moments(self, seconds: float, per_minute: float, start: float = 0):
        """Yields moments at random, so many a minute on average."""
        t = start
        while (t := t + self.random.expovariate(per_minute / 60)) < start + seconds:
            yield self.moment(t)

    def one_of(self, shares: dict):
        return self.random.choices(list(shares), list(shares.values()))[0]

    def requests(self, seconds, rates: dict, *, start=0, regions=("eu",), failing=0.04, median_s=0.08, spread=0.5,
                 growth=0.0):
        """Durations of requests, by service; `growth` is what is added per second, relative to the median."""
        answers = {"200": 1 - failing, "404": failing / 2, "503": failing / 2}

        def request(at, service):
            labels = {"service": service, "region": self.random.choice(regions), "status": self.one_of(answers)}
            level = median_s * (1 + growth * (at / SECOND - start))
            took = round(level * self.random.lognormvariate(0, spread), 6)
            return metric(at, "request_duration_seconds", labels, took)
        return [request(at, service) for service, per_minute in rates.items()
                for at in self.moments(seconds, per_minute, start)]

    def gauge(self, name, labels: dict, seconds, every: float, *, start=0, level=10.0, step=2.0, drift=0.0, digits=3):
        """A gauge that is read at intervals, and walks at random from one reading to the next."""
        records, value, t = [], level, start + self.random.uniform(0, every)
        while t < start + seconds:
            records.append(metric(self.moment(t), name, labels, round(value, digits)))
            value = max(0.0, value + drift + self.random.uniform(-step, step))
            t += every * self.random.uniform(0.8, 1.2)
        return records

    def runs(self, seconds, rates: dict, *, start=0, kind="workflow.completed", failing=0.1, median_ms=20_000.0,
             attributes=None):
        """Runs that ended, by subject; `failing` is a share, or one by subject; `attributes` takes a random source."""
        share = failing if isinstance(failing, dict) else dict.fromkeys(rates, failing)
        return [self.event(at, kind, subject,
                           outcome=self.one_of({"failure": share[subject], "success": 1 - share[subject]}),
                           duration_ms=round(median_ms * self.random.lognormvariate(0, 0.6), 1),
                           attributes=attributes(self.random) if attributes else {})
                for subject, per_minute in rates.items() for at in self.moments(seconds, per_minute, start)]

    def event(self, at, kind, subject, **rest):
        self.ids += 1
        return event(at, f"e{self.ids:05}", kind, subject, **rest)

    def arriving(self, records, delay_s=DELAY_S, held=0.0, held_s=(40, 150)):
        """Puts records in order of arrival: up to `delay_s` after their time, or `held_s` for a share `held`."""
        def arrival(record):
            delay = self.random.uniform(*held_s) if self.random.random() < held else self.random.uniform(0, delay_s)
            return record["ts"] + delay * SECOND
        return sorted(sorted(records, key=lambda record: record["ts"]), key=arrival)


def metric(at: int, name: str, labels: dict, value: float, **rest) -> dict:
    return {"ts": at, "name": name, "labels": labels, "value": value, **rest}


def event(at: int, id: str, kind: str, subject: str, *, source="orchestrator", **rest) -> dict:
    return {"ts": at, "id": id, "source": source, "type": kind, "subject": subject,
            **{key: value for key, value in rest.items() if value not in (None, {})}}


# --- tumble -----------------------------------------------------------------------------------------------------------

SERVICES = {"checkout": 13, "search": 22, "cart": 8, "billing": 4}


@case
def tumble_count_by_label(fleet):
    return {"metrics": fleet.arriving(fleet.requests(420, SERVICES)
                                      + fleet.gauge("queue_depth", {"queue": "orders"}, 420, 10))}


@case
def tumble_quantiles(fleet):
    return {"metrics": fleet.arriving(fleet.requests(360, {"checkout": 40, "search": 25, "billing": 3}, spread=0.9))}


@case
def tumble_quantiles_busy(fleet):
    # Evenly spread values, many to a group: neighbours in rank are close, whatever the definition of a quantile.
    return {"metrics": fleet.arriving([metric(at, "batch_load_seconds", {"job": job},
                                              round(fleet.random.uniform(0.1, 0.2), 6))
                                       for job in ("train", "score") for at in fleet.moments(90, 600)], 2.0)}


@case
def tumble_filter_case(fleet):
    return {"metrics": fleet.arriving(fleet.requests(360, SERVICES, failing=0.3, regions=("eu", "us")))}


@case
def tumble_trend(fleet):
    rising = fleet.requests(300, {"search": 12}, spread=0.2, growth=0.01)
    falling = fleet.requests(300, {"cart": 10}, spread=0.2, growth=-0.002)
    # Now and then a single request in a window: a line through one point has no slope.
    rare = fleet.requests(300, {"billing": 1.2})
    return {"metrics": fleet.arriving(rising + falling + rare)}


@case
def tumble_null_keys(fleet):
    records = fleet.requests(360, {"checkout": 12, "search": 15, "cart": 9}, regions=("eu", "us"))
    for record in records:
        lost = fleet.random.random()
        if lost < 0.15:
            del record["labels"]["service"]
        if 0.1 < lost < 0.3:
            del record["labels"]["region"]
        if 0.3 < lost < 0.35:
            del record["labels"]
    return {"metrics": fleet.arriving(records)}


@case
def tumble_late_rows(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, {"checkout": 14, "search": 18}), held=0.12)}


@case
def tumble_events_outcomes(fleet):
    records = fleet.runs(900, {"nightly-etl": 6, "train-model": 3, "release": 2, "backup": 4},
                         failing={"nightly-etl": 0.3, "train-model": 0.15, "release": 0.5, "backup": 0.05})
    for record in records:
        if fleet.random.random() < 0.1:
            record["outcome"] = "cancelled"
            del record["duration_ms"]
        elif fleet.random.random() < 0.05:
            record["outcome"] = None
    return {"events": fleet.arriving(records)}


@case
def tumble_count_distinct(fleet):
    def worker(rng):
        return {"worker": f"w{rng.randrange(12):02}",
                **({"trace": f"t{rng.randrange(40)}"} if rng.random() < 0.8 else {})}
    return {"events": fleet.arriving(fleet.runs(600, {"resize": 22, "encode": 9, "upload": 3}, kind="task.completed",
                                                attributes=worker))}


@case
def tumble_first_last(fleet):
    records = sum((fleet.gauge("queue_depth", {"queue": queue}, 600, every, level=level)
                   for queue, every, level in (("orders", 9, 40), ("emails", 14, 12), ("thumbnails", 33, 90))), [])
    # Several readings at one and the same time, some of them the first or the last of their window.
    for record in [record for record in records if fleet.random.random() < 0.25]:
        records.append({**record, "value": round(record["value"] + fleet.random.choice((-3, 2)), 3)})
    return {"metrics": fleet.arriving(records)}

@case
def tumble_no_key(fleet):
    # Seven minutes of silence in between: windows without rows are not there.
    return {"metrics": fleet.arriving(fleet.gauge("queue_depth", {"queue": "orders"}, 300, 4)
                                      + fleet.gauge("queue_depth", {"queue": "emails"}, 300, 11)
                                      + fleet.gauge("queue_depth", {"queue": "orders"}, 200, 5, start=720))}


@case
def tumble_where_labels(fleet):
    records = fleet.requests(420, SERVICES, regions=("eu", "us", "ap"), failing=0.3, median_s=0.12)
    for record in records:
        if fleet.random.random() < 0.2:
            del record["labels"]["region"]
    other = fleet.gauge("request_queue", {"service": "search", "region": "us", "status": "200"}, 420, 15)
    return {"metrics": fleet.arriving(records + other)}


@case
def tumble_ratio_by_zero(fleet):
    # So few requests that some windows have none that was answered, and some none that was counted at all.
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 4, "billing": 1.5, "cart": 2.5}, failing=0.5))}


@case
def tumble_having(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, {"checkout": 7, "search": 10, "cart": 5, "billing": 2},
                                                     failing=0.25))}


@case
def tumble_boundaries(fleet):
    """Rows on the very edges of windows, edges of lateness, and every spelling of a time that a producer may use."""
    minute = 60 * SECOND
    records = []
    for n in range(12):
        edge = n * minute
        records += [metric(edge + off, "ticks", {"probe": "edge"}, float(k))
                    for k, off in enumerate((0, 1, 30 * SECOND, minute - 1000, minute - 1))]
    epoch = int(START.timestamp())
    spelled = [f"2026-03-01T12:14:0{n}+02:00" for n in range(5)] + [f"2026-03-01T04:44:1{n}.5-05:30" for n in range(5)]
    spelled += [epoch + 860, (epoch + 861) * 1000 + 7, (epoch + 862) * 10**6 + 7, (epoch + 863) * 10**9 + 7000]
    records += [metric({"as": ts}, "ticks", {"probe": "spelled"}, float(n)) for n, ts in enumerate(spelled)]
    # The watermark stands at 10:15:00 exactly after this row: the minute that ends there is closed, the next is open.
    records += [metric(15 * minute + 10 * SECOND, "ticks", {"probe": "late"}, 1.0),
                metric(15 * minute - 1, "ticks", {"probe": "late"}, 2.0),
                metric(15 * minute, "ticks", {"probe": "late"}, 3.0)]
    # And here one microsecond before 10:17:00: the minute that ends there is still open, and after the next row closed.
    records += [metric(17 * minute + 10 * SECOND - 1, "ticks", {"probe": "late"}, 4.0),
                metric(16 * minute, "ticks", {"probe": "late"}, 5.0),
                metric(17 * minute + 10 * SECOND, "ticks", {"probe": "late"}, 6.0),
                metric(17 * minute - 1, "ticks", {"probe": "late"}, 7.0),
                metric(17 * minute, "ticks", {"probe": "late"}, 8.0)]
    return {"metrics": records}


@case
def tumble_spread(fleet):
    records = fleet.requests(480, {"checkout": 9, "search": 14}, spread=0.8)
    records += fleet.requests(480, {"billing": 0.8})
    # A component that always says the same: its deviation is nothing, not something near it.
    records += [metric(at, "request_duration_seconds", {"service": "probe", "region": "eu", "status": "200"}, 0.1)
                for at in fleet.moments(480, 6)]
    return {"metrics": fleet.arriving(records)}


@case
def tumble_casts(fleet):
    def loaded(rng):
        rows = rng.choice((str(rng.randrange(10, 5000)), str(rng.randrange(10, 5000)), str(rng.randrange(10, 5000)),
                           "n/a", "", "unknown"))
        return {"rows": rows, "batches": str(rng.choice((0, 1, 2, 5, 10))),
                **({"rate": rng.choice(("0.25", "1e-3", "12", "-"))} if rng.random() < 0.9 else {})}
    return {"events": fleet.arriving(fleet.runs(600, {"load-orders": 11, "load-users": 8, "load-audit": 1},
                                                kind="task.completed", attributes=loaded))}


@case
def tumble_own_lateness(fleet):
    return {"metrics": fleet.arriving(fleet.requests(480, {"checkout": 16, "search": 12}), held=0.2, held_s=(8, 75))}


@case
def tumble_expression_keys(fleet):
    records = fleet.requests(420, SERVICES, failing=0.3)
    for record in records:
        if fleet.random.random() < 0.1:
            del record["labels"]["service"]
            record["labels"]["job"] = fleet.random.choice(("Nightly", "hourly"))
    return {"metrics": fleet.arriving(records)}


@case
def tumble_odd_labels(fleet):
    odd = [{"service": "søk", "shard": 3}, {"service": "søk", "shard": "3"},
           {"service": "検索", "shard": 12, "canary": True}, {"service": "a\"b\\c", "canary": False},
           {"service": "O'Hara", "it's": "a key"}, {"service": "two\nlines"}, {"service": " padded "},
           {"service": "🚀", "shard": -1}, {"service": "Ab"}, {"service": "aB"}, {}]
    return {"metrics": fleet.arriving([metric(at, "heartbeat", dict(fleet.random.choice(odd)), 1)
                                       for at in fleet.moments(300, 50)])}


@case
def tumble_seven_minutes(fleet):
    # Seven minutes do not divide an hour: the windows begin where multiples of them since 1970 are.
    return {"events": fleet.arriving(fleet.runs(3600, {"backup": 0.9, "release": 0.5}, median_ms=40_000)
                                     + fleet.runs(1200, {"backup": 1}, start=7200))}


@case
def tumble_all_metrics(fleet):
    records = [{**record, "unit": "seconds"} for record in fleet.requests(300, {"checkout": 9, "cart": 5})]
    for name, kind, unit in (("bytes_sent_total", "counter", "bytes"), ("bytes_sent", "delta", "bytes"),
                             ("temperature", "gauge", "celsius"), ("temperature", "gauge", "kelvin")):
        records += [{**record, "kind": kind, "unit": unit}
                    for record in fleet.gauge(name, {"host": "h1"}, 300, 13, level=300)]
    return {"metrics": fleet.arriving(records + fleet.gauge("queue_depth", {"queue": "orders"}, 300, 10))}


@case
def tumble_sources(fleet):
    records = fleet.runs(600, {"api": 8, "worker": 5}, kind="log.written", median_ms=3)
    for record in records:
        record["source"] = fleet.random.choice(("k8s/eu", "k8s/us", ""))
        del record["outcome"]
        severity = fleet.one_of({"info": 6, "warning": 2, "error": 1, None: 1})
        line = fleet.random.randrange(100)
        record.update(severity=severity, data={"line": line} if fleet.random.random() < 0.6 else None)
    return {"events": fleet.arriving(records)}


@case
def tumble_clock_ahead(fleet):
    # One reading of a host whose clock is five minutes ahead: it takes the watermark along, and what comes after it is
    # late until time has caught up.
    records = fleet.arriving([metric(at, "load", {"host": host}, round(fleet.random.uniform(0, 4), 3))
                              for host in ("h1", "h2") for at in fleet.moments(900, 9)])
    ahead = metric(fleet.moment(300 + 300), "load", {"host": "h9"}, 1.5)
    place = next(i for i, record in enumerate(records) if record["ts"] > 300 * SECOND)
    return {"metrics": records[:place] + [ahead] + records[place:]}


@case
def tumble_spelled_widths(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, {"checkout": 8, "search": 6}))}


# --- hop --------------------------------------------------------------------------------------------------------------


@case
def hop_failures_5m_by_1m(fleet):
    return {"events": fleet.arriving(fleet.runs(1200, {"nightly-etl": 5, "release": 1.2, "train-model": 2.5},
                                                failing={"nightly-etl": 0.3, "release": 0.6, "train-model": 0.05}))}


@case
def hop_uneven(fleet):
    # Five minutes every two: the width is not a multiple of the slide.
    return {"metrics": fleet.arriving(fleet.requests(1200, {"checkout": 7, "search": 11}, regions=("eu", "us")))}


@case
def hop_sixty_panes(fleet):
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 3.5, "billing": 0.7}, spread=0.9))}


@case
def hop_late_for_some(fleet):
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 9, "search": 13}), held=0.25, held_s=(15, 420))}


@case
def hop_merged_states(fleet):
    records = fleet.requests(900, {"checkout": 5, "search": 8, "billing": 0.6}, regions=("eu", "us", "ap"), spread=0.7,
                             growth=0.0004)
    return {"metrics": fleet.arriving(records)}


@case
def hop_uneven_late(fleet):
    return {"events": fleet.arriving(fleet.runs(1800, {"release": 4, "backup": 6}), held=0.2, held_s=(12, 600))}


@case
def hop_days(fleet):
    day = 86_400
    return {"metrics": fleet.arriving(
        fleet.gauge("disk_used_bytes", {"host": "h1"}, 4 * day, 2400, level=500, step=20, drift=3)
        + fleet.gauge("disk_used_bytes", {"host": "h2"}, 2 * day, 3600, level=90, step=5))}


# --- session ----------------------------------------------------------------------------------------------------------


def bursts(fleet, seconds: float, every: float, size: int, pause: float):
    """Yields moments in bursts: one begins `every` so many seconds, has up to twice `size` moments, `pause` apart."""
    t = 0.0
    while (t := t + fleet.random.expovariate(1 / every)) < seconds:
        at = t
        for _ in range(fleet.random.randint(1, 2 * size)):
            yield fleet.moment(at)
            at += fleet.random.expovariate(1 / pause)


@case
def session_events_by_subject(fleet):
    steps = [fleet.event(at, "deploy.step", subject, outcome=fleet.one_of({"success": 12, "failure": 1}),
                         duration_ms=round(fleet.random.uniform(200, 9000), 1),
                         attributes={"step": fleet.random.choice(("build", "push", "roll", "verify"))})
             for subject in ("checkout", "search", "cart") for at in bursts(fleet, 3000, 400, 8, 22)]
    # Another kind of event, which must not hold a session together.
    other = [fleet.event(at, "deploy.note", subject) for subject in ("checkout", "search")
             for at in fleet.moments(3000, 1.5)]
    return {"events": fleet.arriving(steps + other)}


@case
def session_metrics(fleet):
    users = ({"user": "ana"}, {"user": "bo"}, {"user": "cy", "plan": "free"}, {})
    return {"metrics": fleet.arriving([metric(at, "query_seconds", dict(labels),
                                              round(fleet.random.lognormvariate(-1, 0.8), 6))
                                       for labels in users for at in bursts(fleet, 2400, 240, 9, 6)])}


@case
def session_bridge(fleet):
    # Rows some twenty-five seconds apart, each up to fifty seconds on its way: many come when what is before them and
    # what is after them were two sessions.
    return {"metrics": fleet.arriving([metric(at, "heartbeat", {"node": node}, 1.0) for node in ("n1", "n2", "n3")
                                       for at in fleet.moments(1800, 2.4)], 50)}


@case
def session_longest(fleet):
    # One that never pauses, one that begins between two cuts and ends soon after one, and some that are short.
    always = [metric(at, "busy", {"node": "always"}, float(fleet.random.randint(1, 9)))
              for at in fleet.moments(2400, 8)]
    between = [metric(at, "busy", {"node": "between"}, float(fleet.random.randint(1, 9)))
               for at in fleet.moments(800, 9, start=130)]
    short = [metric(at, "busy", {"node": "short"}, float(fleet.random.randint(1, 9)))
             for at in bursts(fleet, 2400, 200, 6, 8)]
    # Pauses of exactly the gap about the cut at 10:10:00, and rows on the cut itself.
    exact = [metric(second * SECOND, "busy", {"node": "exact"}, 1.0) for second in range(60, 1500, 30)]
    return {"metrics": fleet.arriving(always + between + short + exact)}


def page_views(fleet, users, every: float, size: int):
    return [fleet.event(at, "page.viewed", user, duration_ms=round(fleet.random.uniform(10, 900), 1))
            for user in users for at in bursts(fleet, 2400, every, size, 9)]


@case
def session_late(fleet):
    return {"events": fleet.arriving(page_views(fleet, ("ana", "bo", "cy"), 220, 7), held=0.2, held_s=(60, 160))}


@case
def session_reopened(fleet):
    # Held up for so long only that a row may come when the session it was part of has ended, and is itself not late.
    return {"events": fleet.arriving(page_views(fleet, ("ana", "bo", "cy", "di"), 260, 4), held=0.3, held_s=(12, 45))}


@case
def session_exact_pause(fleet):
    # Pauses of the gap to the microsecond, and one microsecond more.
    at, moments = 0, [0]
    for _ in range(80):
        at += fleet.random.choice((60 * SECOND, 60 * SECOND + 1, 60 * SECOND - 1, 20 * SECOND, 7 * SECOND))
        moments.append(at)
    return {"events": [fleet.event(moment, "job.tick", fleet.random.choice(("a", "b"))) for moment in moments]}


# --- the busiest of each window, and windows beside each other --------------------------------------------------------

FIVE = {"checkout": 9, "search": 10, "cart": 8, "billing": 5, "login": 7}


@case
def top_two_services(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, FIVE))}


@case
def top_of_hops(fleet):
    return {"events": fleet.arriving(fleet.runs(1200, {"etl": 3, "train": 3, "release": 2, "backup": 2.5},
                                                failing=0.3))}


@case
def top_per_region(fleet):
    return {"metrics": fleet.arriving(fleet.requests(480, FIVE, regions=("eu", "us", "ap")))}


@case
def top_late_rows(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, FIVE), held=0.15)}


@case
def window_lag(fleet):
    # One that is silent for minutes at a time: the row before is then not that of the minute before.
    rare = [record for start in (0, 130, 400, 700) for record in fleet.requests(60, {"billing": 9}, start=start)]
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 8, "search": 11}) + rare)}


@case
def window_moving_average(fleet):
    return {"metrics": fleet.arriving(fleet.requests(1200, {"checkout": 6, "search": 9, "billing": 0.8}))}


@case
def window_lookback(fleet):
    rare = [record for start in (0, 70, 200, 420, 500, 800)
            for record in fleet.requests(50, {"billing": 7}, start=start)]
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 8}) + rare)}


@case
def window_share(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, FIVE))}


@case
def window_jump(fleet):
    return {"metrics": fleet.arriving([record for queue, every in (("orders", 17), ("emails", 26)) for record in
                                       fleet.gauge("queue_depth", {"queue": queue}, 1800, every, level=60, step=14)])}


# --- views over views -------------------------------------------------------------------------------------------------


@case
def chain_1m_to_5m(fleet):
    return {"metrics": fleet.arriving(fleet.requests(1500, {"checkout": 8, "search": 5, "billing": 0.4}), held=0.06)}


@case
def chain_of_three(fleet):
    return {"metrics": fleet.arriving(fleet.requests(1200, {"checkout": 14, "search": 9}))}


@case
def chain_hop_over_view(fleet):
    return {"events": fleet.arriving(fleet.runs(1200, {"etl": 6, "release": 1.5}, failing=0.25))}


@case
def chain_over_hops(fleet):
    return {"metrics": fleet.arriving(fleet.requests(1200, {"checkout": 7, "cart": 5}))}


@case
def chain_over_top(fleet):
    return {"metrics": fleet.arriving(fleet.requests(900, FIVE))}


@case
def select_filtered(fleet):
    return {"metrics": fleet.arriving(fleet.requests(720, SERVICES, failing=0.25))}


@case
def select_grouped(fleet):
    records = fleet.requests(720, {"checkout": 9, "search": 12, "cart": 4, "billing": 1}, regions=("eu", "us"))
    return {"metrics": fleet.arriving(records)}


@case
def select_top(fleet):
    return {"metrics": fleet.arriving(fleet.requests(720, FIVE))}


def deployments(fleet, seconds, rates):
    return fleet.runs(seconds, rates, kind="service.deployed", failing=0.2, median_ms=45_000,
                      attributes=lambda rng: {"version": f"v{rng.randrange(20)}"})


@case
def join_metrics_events(fleet):
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 9, "search": 14, "cart": 6}, failing=0.2)),
            "events": fleet.arriving(deployments(fleet, 900, {"checkout": 2, "search": 1, "login": 1}))}


@case
def join_left(fleet):
    records = fleet.requests(900, {"checkout": 9, "search": 5, "cart": 1})
    for record in records:
        if fleet.random.random() < 0.1:
            del record["labels"]["service"]
    return {"metrics": fleet.arriving(records),
            "events": fleet.arriving(deployments(fleet, 900, {"checkout": 1.2, "search": 0.5, "login": 0.8}))}


@case
def join_full(fleet):
    # Requests end before the deployments do, and pause in between: some windows are on the one side only.
    requests = fleet.requests(300, {"checkout": 5, "search": 2})
    requests += fleet.requests(300, {"checkout": 4, "cart": 2}, start=480)
    return {"metrics": fleet.arriving(requests),
            "events": fleet.arriving(deployments(fleet, 1200, {"checkout": 1.5, "login": 1, "cart": 1}))}


@case
def join_then_rollup(fleet):
    return {"metrics": fleet.arriving(fleet.requests(1200, {"checkout": 9, "search": 6, "cart": 3}, failing=0.15)),
            "events": fleet.arriving(deployments(fleet, 1200, {"checkout": 0.8, "search": 0.4, "cart": 0.6}))}


@case
def join_of_hops(fleet):
    return {"metrics": fleet.arriving(fleet.requests(900, {"checkout": 6, "search": 8})),
            "events": fleet.arriving(fleet.runs(900, {"checkout": 2, "search": 1}, kind="task.completed"))}


@case
def join_of_three(fleet):
    depths = [record for service, every in (("checkout", 14), ("search", 21), ("cart", 50)) for record in
              fleet.gauge("queue_depth", {"service": service}, 720, every, level=30, step=6)]
    return {"metrics": fleet.arriving(fleet.requests(720, {"checkout": 8, "search": 6, "cart": 4}) + depths),
            "events": fleet.arriving(deployments(fleet, 720, {"checkout": 1.5, "search": 1, "cart": 1}))}


@case
def join_with_itself(fleet):
    return {"metrics": fleet.arriving(fleet.requests(720, {"checkout": 12, "search": 3}, regions=("eu", "us")))}


@case
def join_late_sides(fleet):
    return {"metrics": fleet.arriving(fleet.requests(720, {"checkout": 9, "search": 6}), held=0.2),
            "events": fleet.arriving(deployments(fleet, 720, {"checkout": 3, "search": 2}), held=0.3)}


# --- dimension tables -------------------------------------------------------------------------------------------------


@case
def dimension_inner_metrics(fleet):
    # Services that nobody owns, and requests of no service.
    records = fleet.requests(600, {**FIVE, "media": 5, "legacy": 4})
    for record in records:
        if fleet.random.random() < 0.08:
            del record["labels"]["service"]
    return {"metrics": fleet.arriving(records)}


@case
def dimension_left_events(fleet):
    rates = {"nightly-etl": 4, "train-model": 3, "release": 2, "adhoc-1": 1.5, "adhoc-2": 0.7}
    return {"events": fleet.arriving(fleet.runs(1200, rates, failing=0.2))}


@case
def dimension_thresholds(fleet):
    return {"metrics": fleet.arriving(fleet.requests(720, FIVE, spread=0.8))}


@case
def dimension_top_per_team(fleet):
    return {"metrics": fleet.arriving(fleet.requests(600, {**FIVE, "media": 8, "mail": 7}))}


@case
def dimension_sessions(fleet):
    return {"events": fleet.arriving([
        fleet.event(at, "deploy.step", service, duration_ms=round(fleet.random.uniform(100, 900), 1))
        for service in ("checkout", "search", "cart", "unknown") for at in bursts(fleet, 2400, 300, 4, 15)])}


@case
def dimension_late_hops(fleet):
    return {"metrics": fleet.arriving(fleet.requests(720, {"checkout": 10, "search": 8, "legacy": 6}), held=0.2,
                                      held_s=(15, 300))}


def lines(records) -> str:
    written = ({**record, "ts": rfc3339(record["ts"]) if isinstance(record["ts"], int) else record["ts"]["as"]}
               for record in records)
    return "".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n" for record in written)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="the name of a case (default: all)")
    chosen = parser.parse_args()
    names, total, stale = chosen.cases or list(CASES), 0, 0
    for name in names:
        for stream, records in CASES[name](Fleet(name)).items():
            path, text = ROOT / name / f"{stream}.ndjson", lines(records)
            total += len(records)
            if not chosen.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                stale += 1
                print(f"  {name}/{path.name} is not what its seed makes (hint: views_data.py {name})")
    done = f"compared, {stale} files differ" if chosen.check else "written"
    print(f"input of the golden views: {len(names)} cases, {total} records {done}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
