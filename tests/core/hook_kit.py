"""Hooks as a test scripts them: what they were asked is kept, what they say comes now or later."""

from collections.abc import Callable

from mqttd.core import spec
from mqttd.core.auth import FilterRuling, Grant, Ruling, Verdict
from mqttd.core.connection import Connection
from mqttd.core.message import Message
from mqttd.core.packets import Connect, Filter
from tests.harness import Harness

Rule = Callable[[Message], Ruling | None]


def allowed(message: Message | None, cache: bool = True, rule: str = "") -> Ruling:
    """The message may be published; None: a hook has taken it."""
    if message is None:
        return Ruling(Grant(0, "", rule), None, False, False, "taker")
    return Ruling(Grant(0, "", rule), message, cache)


def denied(
    code: int = spec.NOT_AUTHORIZED, cache: bool = True, disconnect: bool = False, reason: str = ""
) -> Ruling:
    return Ruling(Grant(code, reason), None, cache, disconnect)


def changed(message: Message, topic: str = "", payload: bytes = b"", qos: int = -1) -> Ruling:
    """Another message in its place, made by `changer`."""
    topic = topic or message.topic
    made = Message(
        topic,
        topic.encode(),
        payload or message.payload,
        message.qos if qos < 0 else qos,
        message.retain,
        message.properties,
        message.expires_at,
        message.origin,
    )
    return Ruling(Grant(), made, True, False, "changer")


class Publishing:
    """`Hooks.publish`. Without a rule every answer comes later, by `answer`."""

    def __init__(self, h: Harness, rule: Rule | None = None, transforms: bool = False) -> None:
        self.h = h
        self.rule = rule
        self.asked: list[tuple[str, str, bool]] = []  # client, topic, granted
        self.waiting: list[tuple[Connection, Message]] = []
        h.broker.hooks.publish = self.publish
        h.broker.hooks.transforms = transforms

    def publish(self, connection: object, message: Message, granted: bool) -> Ruling | None:
        assert isinstance(connection, Connection)
        self.asked.append((connection.client_id, message.topic, granted))
        if self.rule is not None:
            return self.rule(message)
        self.waiting.append((connection, message))
        return None

    def answer(self, make: Rule = allowed) -> None:
        """Answer who has waited longest."""
        connection, message = self.waiting.pop(0)
        ruling = make(message)
        assert ruling is not None
        connection.ruled(ruling, self.h.now)
        self.h.flush()

    def topics(self) -> list[str]:
        """What was asked about since the last call."""
        found = [topic for _, topic, _ in self.asked]
        self.asked.clear()
        return found


class Subscribing:
    """`Hooks.subscribe`, in the same way. `deny` holds the filters that are refused."""

    def __init__(self, h: Harness, later: bool = False) -> None:
        self.h = h
        self.later = later
        self.deny: dict[str, Grant] = {}
        self.change: dict[str, Filter] = {}
        self.waiting: list[tuple[Connection, list[Filter]]] = []
        h.broker.hooks.subscribe = self.subscribe

    def subscribe(self, connection: object, filters: list[Filter]) -> list[FilterRuling] | None:
        assert isinstance(connection, Connection)
        if self.later:
            self.waiting.append((connection, filters))
            return None
        return self.rulings(filters)

    def rulings(self, filters: list[Filter]) -> list[FilterRuling]:
        return [
            FilterRuling(
                self.change.get(entry.topic_filter, entry),
                self.deny.get(entry.topic_filter, Grant()),
            )
            for entry in filters
        ]

    def answer(self) -> None:
        connection, filters = self.waiting.pop(0)
        connection.filtered(self.rulings(filters), self.h.now)
        self.h.flush()


class Receiving:
    """`Hooks.receive`: who may not have which topics."""

    def __init__(self, h: Harness) -> None:
        self.denied: set[tuple[str, str]] = set()
        self.asked: list[tuple[str, str]] = []
        self.cache = True
        h.broker.hooks.receive = self.receive

    def receive(self, connection: object, topic: str) -> Grant:
        assert isinstance(connection, Connection)
        self.asked.append((connection.client_id, topic))
        code = spec.NOT_AUTHORIZED if (connection.client_id, topic) in self.denied else 0
        return Grant(code, cache=self.cache)


class Admitting:
    """`Hooks.authenticate`: `verdict` for everybody, or later."""

    def __init__(self, h: Harness, verdict: Verdict | None) -> None:
        self.h = h
        self.verdict = verdict
        self.waiting: list[Connection] = []
        h.broker.hooks.authenticate = self.authenticate

    def authenticate(self, connection: object, connect: Connect) -> Verdict | None:
        assert isinstance(connection, Connection)
        if self.verdict is None:
            self.waiting.append(connection)
        return self.verdict

    def answer(self, verdict: Verdict) -> None:
        self.waiting.pop(0).authenticated(verdict, self.h.now)
        self.h.flush()
