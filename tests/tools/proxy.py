"""A TCP proxy between a Kafka client and a broker, which places faults at a request of one kind.

Knows of the protocol only what stands at the head of a frame: its length, the kind of the request (API key), the
correlation id by which an answer finds its request, and the client's name. A `Rule` says what happens to the frames of
one kind and one client; all others pass as they are. So a fault lies exactly between two steps of a transaction, and
the program under test has no code for it.
"""

import socket
import struct
import threading

# Keys of the protocol: https://kafka.apache.org/protocol#protocol_api_keys
PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_FETCH, FIND_COORDINATOR = 0, 1, 2, 3, 9, 10
JOIN_GROUP, HEARTBEAT, SYNC_GROUP = 11, 12, 14
INIT_PRODUCER_ID, ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT = 22, 24, 25, 26, 28

REQUEST, ANSWER = "request", "answer"
FORWARD, DROP, CUT = "forward", "drop", "cut"
HOLD_S_MAX = 900


class Rule:
    """What happens to frames of one kind, from now on and until it is lifted.

    `does`: DROP loses the frame, CUT loses it with its connection, "hold" keeps it until `release`, and a function
    makes another frame of it. `after`: only once a request of that kind was seen from the same client since the rule
    stands. `times`: how many frames it takes."""

    def __init__(self, client: str, api: int, side: str, does, after=None, times=1):
        self.client, self.api, self.side, self.does, self.after, self.left = client, api, side, does, after, times
        self.primed = after is None
        self.seen = threading.Event()
        self.hits = 0
        self._released = threading.Event()
        self._then = FORWARD

    def release(self, then: str = FORWARD):
        """Lets a held frame go on, or loses it."""
        self._then = then
        self._released.set()

    def _takes(self, side, api, client) -> bool:
        if client != self.client:
            return False
        if side == REQUEST and api == self.after:
            self.primed = True
        if (side, api) != (self.side, self.api) or not self.primed or not self.left:
            return False
        self.left -= 1
        self.hits += 1
        return True

    def _treat(self, frame: bytes) -> tuple:
        """Returns (what to do, the frame to forward)."""
        if callable(self.does):
            changed = self.does(frame)
            self.seen.set()
            return FORWARD, changed
        self.seen.set()
        if self.does != "hold":
            return self.does, frame
        if not self._released.wait(HOLD_S_MAX):
            return CUT, frame
        return self._then, frame


def without_brokers(frame: bytes) -> bytes:
    """Makes of an answer to METADATA, of a flexible version (9 or later), one that names no broker."""
    brokers = 4 + 1 + 4  # behind the correlation id, the header's tags (none) and the throttle time
    count, at = _varint(frame, brokers)
    for _ in range(count - 1):
        length, at = _varint(frame, at + 4)
        rack, at = _varint(frame, at + length - 1 + 4)
        tags, at = _varint(frame, at + max(rack - 1, 0))
        if tags:
            raise ValueError("a broker with tags")
    return frame[:brokers] + b"\x01" + frame[at:]


def _varint(frame: bytes, at: int) -> tuple:
    """Returns an unsigned varint and where it ends."""
    value = shift = 0
    while True:
        byte = frame[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


class Proxy:
    """Listens on a port of its own on loopback; `target` is the broker's listener that advertises this port."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.target = None
        self._rules = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._server.close()
        with self._lock:
            rules = list(self._rules)
        for rule in rules:
            rule.release(CUT)

    def rule(self, *args, **kwargs) -> Rule:
        """Puts a rule in force; see `Rule`."""
        rule = Rule(*args, **kwargs)
        with self._lock:
            self._rules.append(rule)
        return rule

    def lift(self, rule: Rule, then: str = FORWARD):
        """Ends a rule; what it holds goes on, or is lost."""
        with self._lock:
            if rule in self._rules:
                self._rules.remove(rule)
        rule.release(then)

    def _accept(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        try:
            host, port = self.target.rsplit(":", 1)
            broker = socket.create_connection((host, int(port)), timeout=5)
        except (OSError, AttributeError):
            # Nobody listens there: the client sees what it would see without us.
            return client.close()
        broker.settimeout(None)
        for end in (client, broker):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = {}
        pumps = [
            threading.Thread(target=self._pump, args=(*ends, side, asked), daemon=True)
            for side, ends in ((REQUEST, (client, broker)), (ANSWER, (broker, client)))
        ]
        for pump in pumps:
            pump.start()

    def _pump(self, source, sink, side, asked):
        """Carries frames in one direction until an end closes; `asked`: kind and client of every request in flight."""
        try:
            with source.makefile("rb", buffering=1 << 16) as reader:
                while len(head := reader.read(4)) == 4:
                    (length,) = struct.unpack(">i", head)
                    frame = reader.read(length)
                    if len(frame) < length:
                        break
                    api, client = self._kind(frame, side, asked)
                    does, frame = self._treat(frame, side, api, client)
                    if does == CUT:
                        break
                    if does == FORWARD:
                        sink.sendall(struct.pack(">i", len(frame)) + frame)
        except (OSError, ValueError, struct.error):
            pass
        finally:
            for end in (source, sink):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    @staticmethod
    def _kind(frame, side, asked):
        if side == ANSWER:
            return asked.pop(struct.unpack_from(">i", frame)[0], (None, None))
        api, _, correlation, length = struct.unpack_from(">hhih", frame)
        kind = api, frame[10 : 10 + length].decode(errors="replace") if length > 0 else ""
        asked[correlation] = kind
        return kind

    def _treat(self, frame, side, api, client):
        with self._lock:
            # Every rule is shown the frame, for those that wait for another kind first.
            taking = [rule for rule in self._rules if rule._takes(side, api, client)]
        return taking[0]._treat(frame) if taking else (FORWARD, frame)
