"""OTLP metrics as bytes and as JSON, written by hand from the .proto files: independent of the decoder under test."""

import json
import struct

VARINT, FIXED64, BYTES = 0, 1, 2


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def tag(field: int, wire: int) -> bytes:
    return varint(field << 3 | wire)


def message(field: int, body: bytes) -> bytes:
    return tag(field, BYTES) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    return message(field, value.encode())


def fixed(field: int, value: int) -> bytes:
    return tag(field, FIXED64) + struct.pack("<Q", value)


def double(field: int, value: float) -> bytes:
    return tag(field, FIXED64) + struct.pack("<d", value)


def attribute(field: int, name: str, value: str) -> bytes:
    """KeyValue { key = 1, value = 2: AnyValue { string_value = 1 } }"""
    return message(field, text(1, name) + message(2, text(1, value)))


def attributes(field: int, pairs: dict) -> bytes:
    return b"".join(attribute(field, name, value) for name, value in pairs.items())


def number_point(labels: dict, nanos: int, value: float) -> bytes:
    """NumberDataPoint { time_unix_nano = 3, as_double = 4, attributes = 7 }"""
    return attributes(7, labels) + fixed(3, nanos) + double(4, value)


def gauge(name: str, points: list) -> bytes:
    """Metric { name = 1, gauge = 5: Gauge { data_points = 1 } }"""
    return text(1, name) + message(5, b"".join(message(1, number_point(*p)) for p in points))


def counter(name: str, points: list) -> bytes:
    """Metric { name = 1, sum = 7: Sum { data_points = 1, aggregation_temporality = 2, is_monotonic = 3 } }"""
    body = b"".join(message(1, number_point(*p)) for p in points)
    return text(1, name) + message(7, body + tag(2, VARINT) + b"\x02" + tag(3, VARINT) + b"\x01")


def histogram(name: str, labels: dict, nanos: int, bounds: list, counts: list, total: float) -> bytes:
    """Metric { histogram = 9: Histogram { data_points = 1: { time = 3, count = 4, sum = 5, bucket_counts = 6,
    explicit_bounds = 7, attributes = 9 }, aggregation_temporality = 2 } }"""
    point = attributes(9, labels) + fixed(3, nanos) + fixed(4, sum(counts)) + double(5, total)
    point += message(6, b"".join(struct.pack("<Q", n) for n in counts))
    point += message(7, b"".join(struct.pack("<d", b) for b in bounds))
    return text(1, name) + message(9, message(1, point) + tag(2, VARINT) + b"\x02")


def metrics_data(resource: dict, metrics: list) -> bytes:
    """MetricsData { resource_metrics = 1: { resource = 1: { attributes = 1 }, scope_metrics = 2: { metrics = 2 } } }"""
    scope = b"".join(message(2, metric) for metric in metrics)
    return message(1, message(1, attributes(1, resource)) + message(2, scope))


def nested(levels: int) -> bytes:
    """A gauge point whose attribute is an array in an array in an array …: AnyValue { array_value = 5: { values = 1 } }"""
    value = text(1, "deep")
    for _ in range(levels):
        value = message(5, message(1, value))
    point = message(7, text(1, "deep") + message(2, value)) + fixed(3, 1) + double(4, 1.0)
    return metrics_data({}, [text(1, "deep") + message(5, message(1, point))])


def gauge_json(resource: dict, name: str, points: list) -> bytes:
    def pairs(labels):
        return [{"key": k, "value": {"stringValue": v}} for k, v in labels.items()]

    data_points = [{"attributes": pairs(l), "timeUnixNano": str(t), "asDouble": v} for l, t, v in points]
    scope = {"metrics": [{"name": name, "gauge": {"dataPoints": data_points}}]}
    return json.dumps(
        {"resourceMetrics": [{"resource": {"attributes": pairs(resource)}, "scopeMetrics": [scope]}]}
    ).encode()
