"""The records of the end-to-end test, made from a seed, and what must come of each: the ground truth.

One topic per format. Times run forward in every partition up to `JITTER_S`, which is less than the lateness of any
view, so no row is ever late. Every sample has a time and value of its own, so that a row lost or doubled shows in a
comparison of multisets. The last record of every partition is a sentinel, whose time closes every window before it.
"""

import gzip
import json
import random
from collections import namedtuple
from datetime import datetime, timezone

import otlp

FORMATS = {
    "metrics": "json_metrics",
    "events": "json_events",
    "cloudevents": "cloudevents",
    "otlp": "otlp_metrics",
    "influx": "influx_line",
}
# How often each topic gets the next record; every format of a metric holds the share its usual clients would give it.
WEIGHTS = {"metrics": 42, "events": 14, "cloudevents": 8, "otlp": 12, "influx": 24}
SAMPLE_TOPICS = ("metrics", "otlp", "influx")
PARTITIONS = 6
JITTER_S = 2.0
SPAN_S = 50 * 60
# Between the last record and the sentinels: longer than any window shipped, shorter than `limits.ahead_max`.
TAIL_S = 6 * 60

SERVICES = ["checkout", "search", "cart", "billing", "login", "media"]
REPLICAS = ["r0", "r1", "r2"]
COMPONENTS = ["broker-eu", "broker-us", "scheduler", "artifact-store"]
WORKFLOWS = ["nightly-etl", "train-model", "release", "backup"]
PHASES = ["prepare", "work", "finish"]

# (rule, labels its alert must carry, from, to): shares of the span in which the fault holds.
INCIDENTS = {
    "errors": ("error_rate_high", {"service": "billing"}, 0.20, 0.45),
    "latency": ("response_time_high", {"service": "search"}, 0.50, 0.70),
    "resource": ("resource_exhausted", {"service": "cart", "replica": "r1", "resource": "cpu"}, 0.30, 0.42),
    "component": ("component_unhealthy", {"component": "broker-eu"}, 0.60, 0.66),
    "workflow": ("workflow_failing", {"workflow": "nightly-etl"}, 0.45, 0.95),
}

# The ways a record is broken, with the reasons that fit.
BROKEN = {
    "wrong_type": {"type", "syntax"},
    "missing_field": {"missing", "syntax"},
    "not_finite": {"not_finite", "syntax", "type"},
    "empty": {"empty"},
    "year_1970": {"time_range"},
    "year_2100": {"time_range"},
    "long_name": {"too_large"},
    "deep_nesting": {"too_large", "syntax"},
    "not_utf8": {"encoding", "syntax"},
    "truncated": {"syntax"},
    "gzip_bomb": {"encoding", "syntax"},
    "random_bytes": {"encoding", "syntax"},
}

# Ways that are too heavy for every run, or need a cap of their own; the tests of faults send them.
HEAVY = {
    "giant": {"too_large", "encoding", "syntax"},
    "too_many_series": {"cardinality"},
    "no_room": {"syntax"},
    "unreadable": {"too_large", "encoding"},
}
# Of these a letter cannot hold all: that it is there, with where it came from and why, is what counts.
NOT_WHOLE = {"no_room", "unreadable"}

Record = namedtuple("Record", "topic partition key value headers samples events broken")
Sample = namedtuple("Sample", "name labels ts value")
Event = namedtuple("Event", "ts id source type subject outcome duration_ms severity attributes data")

STRUCTURED = [("content-type", b"application/cloudevents+json; charset=utf-8")]
DEEP = "[" * 10_000 + "]" * 10_000
BOMB = gzip.compress(bytes(4_000_000), mtime=0)


def canonical(value) -> str:
    """Returns JSON text that is equal exactly where the values are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def rfc3339(ts: int) -> str:
    return datetime.fromtimestamp(ts // 1_000_000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S") + f".{ts % 1_000_000:06d}Z"


class Truth:
    """Makes the records in order. `now_s` is the time of the sentinels."""

    def __init__(self, seed: int, records: int, broken: int, now_s: int):
        self.rng = random.Random(seed)
        self.records, self.now = records, now_s * 1_000_000
        self.start = self.now - (SPAN_S + TAIL_S) * 1_000_000
        self.broken = set(self.rng.sample(range(records), broken)) if broken else set()
        self.topics = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=records)
        self.counters = {}
        self.broken_made = 0

    def __iter__(self):
        rng = self.rng
        make = {t: getattr(self, f"_{t}") for t in FORMATS}
        for i in range(self.records):
            topic, share = self.topics[i], i / self.records
            ts = self.start + int((share * SPAN_S + rng.uniform(-JITTER_S, 0)) * 1e6)
            key, value, headers, samples, events = make[topic](i, ts, share)
            how = None
            if i in self.broken:
                # Every way in every format, in turn: 12 and 5 have no common divisor, but topics come at random.
                how = list(BROKEN)[self.broken_made % len(BROKEN)]
                self.broken_made += 1
                value, headers = self._break(topic, how, value, ts)
                samples, events = [], []
            yield Record(topic, rng.randrange(PARTITIONS), key, value, headers, samples, events, how)
        yield from self._sentinels()

    def fault(self, name: str, share: float) -> bool:
        _, _, begin, end = INCIDENTS[name]
        return begin <= share < end

    # ---- good records: key, value, headers, samples, events

    def _metrics(self, i, ts, share):
        rng = self.rng
        draw = rng.random()
        if draw < 0.08:
            component = rng.choice(COMPONENTS)
            down = component == "broker-eu" and self.fault("component", share)
            return self._json_metric(i, [("component_health", {"component": component}, ts, 0 if down else 1)])
        if draw < 0.12:
            # An array, or one object a line, of several requests.
            return self._json_metric(i, [self._request(ts - n, share) for n in range(rng.randint(2, 4))])
        return self._json_metric(i, [self._request(ts, share)])

    def _request(self, ts, share):
        rng = self.rng
        service = rng.choice(SERVICES)
        failed = rng.random() < (0.3 if service == "billing" and self.fault("errors", share) else 0.01)
        seconds = rng.lognormvariate(-2.5, 0.6)
        if service == "search" and self.fault("latency", share):
            seconds *= 12
        labels = {"service": service, "replica": rng.choice(REPLICAS), "status": "500" if failed else "200"}
        return "request_duration_seconds", labels, ts, seconds

    def _json_metric(self, i, points):
        objects, samples = [], []
        for name, labels, ts, value in points:
            # A producer picks one way to write the time; all of them must mean the same.
            stamp, kept = [
                (rfc3339(ts), ts),
                (ts // 1_000_000, ts // 1_000_000 * 1_000_000),
                (ts // 1_000, ts // 1_000 * 1_000),
                (ts, ts),
                (ts * 1_000 + i % 1_000, ts),
            ][i % 5]
            objects.append({"ts": stamp, "name": name, "labels": labels, "value": value})
            samples.append(Sample(name, canonical(labels), kept, float(value)))
        if len(objects) == 1:
            value = json.dumps(objects[0])
        elif i % 2:
            value = json.dumps(objects)
        else:
            value = "\n".join(map(json.dumps, objects)) + "\n"
        return points[0][1].get("service", "").encode() or None, value.encode(), [], samples, []

    def _influx(self, i, ts, share):
        rng, lines, samples = self.rng, [], []
        for n in range(rng.choice([1, 1, 1, 3])):
            service, replica = rng.choice(SERVICES), rng.choice(REPLICAS)
            resource = rng.choice(["cpu", "memory"])
            hot = (service, replica, resource) == ("cart", "r1", "cpu") and self.fault("resource", share)
            ratio = rng.uniform(0.93, 0.99) if hot else rng.uniform(0.2, 0.7)
            at = ts - n
            labels = {"service": service, "replica": replica, "resource": resource}
            lines.append(f"resource_use,service={service},replica={replica},resource={resource} ratio={ratio!r} {at * 1000 + 7}")
            samples.append(Sample("resource_use_ratio", canonical(labels), at, ratio))
        return None, "\n".join(lines).encode(), [], samples, []

    def _otlp(self, i, ts, share):
        rng = self.rng
        resource = {"service.name": "queue-exporter"}
        job = {"job": "queue-exporter", "service_name": "queue-exporter"}
        points, samples = [], []
        for n, service in enumerate(rng.sample(SERVICES, rng.randint(1, 4))):
            at, depth = ts - n, rng.uniform(0, 1000)
            points.append(({"service": service}, at * 1000 + 3, depth))
            samples.append(Sample("queue_depth", canonical(job | {"service": service}), at, depth))
        if i % 10 == 0:
            return None, otlp.gauge_json(resource, "queue_depth", points), [], samples, []
        metrics = [otlp.gauge("queue_depth", points)]
        if i % 10 == 1:
            done = self.counters["done"] = self.counters.get("done", 0.0) + rng.randint(1, 5)
            metrics.append(otlp.counter("tasks_done_total", [({"queue": "main"}, ts * 1000, done)]))
            samples.append(Sample("tasks_done_total", canonical(job | {"queue": "main"}), ts, done))
        if i % 10 == 2:
            metrics.append(self._histogram(ts, job, samples))
        return None, otlp.metrics_data(resource, metrics), [], samples, []

    def _histogram(self, ts, job, samples):
        """As Prometheus keeps one: cumulative buckets under `le`, a count and a sum."""
        counts = [self.rng.randint(0, 50) for _ in range(4)]
        total, below = self.rng.uniform(0, 500), 0
        for le, count in zip(["0.5", "1", "2.5", "+Inf"], counts):
            below += count
            samples.append(Sample("batch_size_bucket", canonical(job | {"queue": "main", "le": le}), ts, float(below)))
        for suffix, value in (("count", float(below)), ("sum", total)):
            samples.append(Sample(f"batch_size_{suffix}", canonical(job | {"queue": "main"}), ts, value))
        return otlp.histogram("batch_size", {"queue": "main"}, ts * 1000, [0.5, 1.0, 2.5], counts, total)

    def _run_of(self, share):
        rng = self.rng
        workflow = rng.choice(WORKFLOWS)
        failed = rng.random() < (0.5 if workflow == "nightly-etl" and self.fault("workflow", share) else 0.03)
        return workflow, "failure" if failed else "success", round(rng.lognormvariate(8, 0.7), 3)

    def _events(self, i, ts, share):
        workflow, outcome, duration = self._run_of(share)
        whole = self.rng.random() < 0.4
        phase = self.rng.choice(PHASES)
        subject = workflow if whole else f"{workflow}/{phase}"
        attributes = {"workflow": workflow} if whole else {"workflow": workflow, "phase": phase}
        event = Event(ts, f"run-{i}", "engine", "workflow.completed" if whole else "task.completed", subject, outcome,
                      duration, "info" if i % 7 else None, canonical(attributes), canonical({"attempt": i % 3}))
        body = {"ts": rfc3339(ts), "id": event.id, "source": event.source, "type": event.type, "subject": subject,
                "outcome": outcome, "duration_ms": duration, "attributes": attributes, "data": {"attempt": i % 3}}
        if event.severity:
            body["severity"] = event.severity
        return workflow.encode(), json.dumps(body).encode(), [], [], [event]

    def _cloudevents(self, i, ts, share):
        kind = i % 3
        if kind == 2:
            return self._binary_event(i, ts, share)
        if kind == 1:
            data = {
                "context": {"version": "0.4.1", "id": f"cd-{i}", "source": "/deployer", "timestamp": rfc3339(ts),
                            "type": "dev.cdevents.service.deployed.0.2.0"},
                "subject": {"id": self.rng.choice(SERVICES), "type": "service",
                            "content": {"environment": {"id": "prod"}, "artifactId": f"pkg:oci/app@{i}"}},
            }
            name, outcome = data["subject"]["id"], None
            attributes = {"environment": "prod", "artifact": f"pkg:oci/app@{i}"}
        else:
            workflow, outcome, _ = self._run_of(share)
            data = {
                "context": {"version": "0.4.1", "id": f"cd-{i}", "source": "/ci", "timestamp": rfc3339(ts),
                            "type": "dev.cdevents.pipelinerun.finished.0.2.0"},
                "subject": {"id": f"run-{i}", "type": "pipelineRun",
                            "content": {"pipelineName": workflow, "outcome": outcome, "url": f"http://ci/{i}"}},
            }
            name, attributes = workflow, {"run": f"run-{i}", "url": f"http://ci/{i}"}
        context = data["context"]
        event = Event(ts, context["id"], context["source"], context["type"], name, outcome, None, None,
                      canonical(attributes), canonical(data))
        body = {"specversion": "1.0", "id": context["id"], "source": context["source"], "type": context["type"],
                "time": rfc3339(ts), "datacontenttype": "application/json", "data": data}
        return name.encode(), json.dumps(body).encode(), STRUCTURED, [], [event]

    def _binary_event(self, i, ts, share):
        workflow, outcome, duration = self._run_of(share)
        data = {"outcome": outcome, "duration_ms": duration, "host": f"h{i % 9}"}
        headers = [("ce_specversion", b"1.0"), ("ce_id", f"b-{i}".encode()), ("ce_source", b"/runner"),
                   ("ce_type", b"task.completed"), ("ce_subject", workflow.encode()), ("ce_time", rfc3339(ts).encode()),
                   ("ce_workflow", workflow.encode()), ("content-type", b"application/json")]
        event = Event(ts, f"b-{i}", "/runner", "task.completed", workflow, outcome, duration, None,
                      canonical({"workflow": workflow}), canonical(data))
        return workflow.encode(), json.dumps(data).encode(), headers, [], [event]

    # ---- broken records: value and headers

    def _break(self, topic, how, value, ts):
        headers = STRUCTURED if topic == "cloudevents" else []
        if how == "empty":
            return b"", headers
        if how == "gzip_bomb":
            return BOMB, headers
        if how == "random_bytes":
            # The first byte is no tag of protobuf, no start of UTF-8 and no JSON.
            return b"\x87\xff" + self.rng.randbytes(200), headers
        broken = getattr(self, f"_break_{topic}")(how, ts)
        return (broken if isinstance(broken, bytes) else broken.encode()), headers

    def _times(self, how, ts):
        return {"year_1970": 1_000_000, "year_2100": 4_102_444_800_000_000}.get(how, ts)

    def _break_metrics(self, how, ts):
        body = {"ts": rfc3339(self._times(how, ts)), "name": "request_duration_seconds", "labels": {"service": "cart"}, "value": 0.1}
        if how == "wrong_type":
            body["value"] = "fast"
        if how == "missing_field":
            del body["value"]
        if how == "long_name":
            body["name"] = "n" * 10_240
        return self._json_breaks(how, json.dumps(body), '"value": 0.1', '"value": 1e999', "cart", '"service": "cart"')

    def _break_events(self, how, ts):
        body = {"ts": rfc3339(self._times(how, ts)), "type": "task.completed", "subject": "backup", "duration_ms": 0.5, "attributes": {}}
        if how == "wrong_type":
            body["subject"] = {"name": "backup"}
        if how == "missing_field":
            del body["subject"]
        if how == "long_name":
            body["type"] = "n" * 10_240
        return self._json_breaks(how, json.dumps(body), '"duration_ms": 0.5', '"duration_ms": 1e999', "backup", '"attributes": {}')

    def _break_cloudevents(self, how, ts):
        body = {"specversion": "1.0", "id": "x", "source": "/ci", "type": "task.completed", "subject": "backup",
                "time": rfc3339(self._times(how, ts)), "data": {"n": 1}}
        if how == "wrong_type":
            body["id"] = {"n": 5}
        if how == "missing_field":
            del body["id"]
        if how == "long_name":
            body["type"] = "n" * 10_240
        return self._json_breaks(how, json.dumps(body), '"n": 1', '"n": NaN', "backup", '"n": 1')

    def _json_breaks(self, how, text, number, infinite, word, inner):
        if how == "not_finite":
            return text.replace(number, infinite)
        if how == "deep_nesting":
            return text.replace(inner, f'"deep": {DEEP}')
        if how == "not_utf8":
            return text.encode().replace(word.encode(), b"ca\xfft")
        if how == "truncated":
            return text[: len(text) // 2]
        return text

    def _break_otlp(self, how, ts):
        at = self._times(how, ts) * 1000
        if how == "wrong_type":
            # A gauge where the wire says varint.
            return otlp.message(1, otlp.message(2, otlp.message(2, otlp.text(1, "m") + otlp.tag(5, otlp.VARINT) + b"\x01")))
        if how == "deep_nesting":
            return otlp.nested(10_000)
        name = {"missing_field": "", "long_name": "n" * 10_240}.get(how, "queue_depth")
        value = float("nan") if how == "not_finite" else 1.5
        whole = otlp.metrics_data({}, [otlp.gauge(name, [({"service": "cart"}, at, value)])])
        if how == "not_utf8":
            return whole.replace(b"cart", b"c\xff\xfet")
        return whole[: len(whole) // 2] if how == "truncated" else whole

    def _break_influx(self, how, ts):
        at = self._times(how, ts) * 1000
        return {
            "wrong_type": f"resource_use,service=cart ratio=fast {at}",
            "missing_field": f"resource_use,service=cart {at}",
            "not_finite": f"resource_use,service=cart ratio=NaN {at}",
            "long_name": f"{'n' * 10_240},service=cart ratio=0.5 {at}",
            "deep_nesting": DEEP,
            "not_utf8": b"resource_use,service=c\xff\xfet ratio=0.5 %d" % at,
            "truncated": "resource_use,service=cart,repl",
        }.get(how, f"resource_use,service=cart ratio=0.5 {at}")

    # ---- the end

    def _sentinels(self):
        for partition in range(PARTITIONS):
            for topic in FORMATS:
                ts, labels = self.now, {"topic": topic, "partition": str(partition)}
                samples, events, headers = [], [], []
                if topic in SAMPLE_TOPICS:
                    samples = [Sample("e2e_sentinel", canonical(labels), ts, 1.0)]
                if topic == "metrics":
                    value = json.dumps({"ts": ts, "name": "e2e_sentinel", "labels": labels, "value": 1})
                elif topic == "influx":
                    value = f"e2e_sentinel,topic={topic},partition={partition} value=1 {ts * 1000}"
                elif topic == "otlp":
                    value = otlp.metrics_data({}, [otlp.gauge("e2e_sentinel", [(labels, ts * 1000, 1.0)])])
                else:
                    event = Event(ts, f"sentinel-{topic}-{partition}", "e2e", "e2e.sentinel", "end", None, None, None, "{}", None)
                    events = [event]
                    body = {"id": event.id, "source": "e2e", "type": event.type, "subject": "end"}
                    if topic == "events":
                        body["ts"] = ts
                    else:
                        body |= {"specversion": "1.0", "time": rfc3339(ts)}
                        headers = STRUCTURED
                    value = json.dumps(body)
                yield Record(topic, partition, None, value if isinstance(value, bytes) else value.encode(), headers, samples, events, None)
