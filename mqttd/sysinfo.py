"""The `$SYS` tree: what the broker tells about itself to whoever subscribes.

Owns: the names and units, which are Mosquitto's so that its exporters and dashboards work as they
are; the damping of the load averages; `announce`, the way in which such a message leaves.

Must not know: the loop, timers, any clock, where the process' memory is read: `SysTree.changed` is
handed `now`, a finished census and the size of the heap.

Invariants: a message under `$SYS` never reaches the store, neither as a retained one nor as a
delivery; it leaves at QoS 0; a value is told again only when its text has changed; what the tree
counts are the clients' own retained messages, not itself.

A load is a rate per minute: after each interval of Δt seconds `x = count · 60 / Δt`, and
`load = x + exp(-Δt / T) · (load - x)` for T of one, five and fifteen minutes.
"""

from __future__ import annotations

import math
from typing import Final

from mqttd.census import Census
from mqttd.core import counters as count
from mqttd.core.broker import Broker
from mqttd.core.counters import Counters
from mqttd.core.message import Message

ROOT: Final = "$SYS/broker/"
_WINDOWS: Final = (("1min", 60.0), ("5min", 300.0), ("15min", 900.0))

_BEFORE_CONNECT: Final = (
    count.REFUSED_HANDSHAKE,
    count.REFUSED_NOT_CONNECT,
    count.REFUSED_TIMEOUT,
)


def announce(broker: Broker, name: str, value: str, now: float) -> int:
    """Publish `name` below $SYS/broker, retained; returns who it went to, roughly."""
    topic = ROOT + name
    message = Message(topic, topic.encode(), value.encode(), 0, True, b"", 0.0, "")
    broker.retained.set(topic, message)  # not Broker.retain, which journals
    settings = broker.settings
    queue_qos0 = settings.queue_qos0
    # An absent session would have it stored; this way it is a QoS 0 message that nobody waits for.
    settings.queue_qos0 = False
    try:
        return broker.route(message, broker.trie.lookup(message.key), None, now)
    finally:
        settings.queue_qos0 = queue_qos0


class Load:
    """One total, damped over the three windows."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self._total = total
        self._values = [0.0] * len(_WINDOWS)

    def update(self, total: int, elapsed: float) -> None:
        """`total` is what it was counted up to after `elapsed` seconds."""
        rate = (total - self._total) * 60.0 / elapsed
        self._total = total
        for place, (_, window) in enumerate(_WINDOWS):
            damping = math.exp(-elapsed / window)
            self._values[place] = rate + damping * (self._values[place] - rate)

    def texts(self) -> list[tuple[str, str]]:
        return [
            (f"load/{self.name}/{window}", f"{value:.2f}")
            for (window, _), value in zip(_WINDOWS, self._values, strict=True)
        ]


def _refused_connects(counters: Counters) -> int:
    """Those that came as far as a CONNECT."""
    refused = counters.refused
    return counters.connects_refused - sum(refused.get(reason, 0) for reason in _BEFORE_CONNECT)


class SysTree:
    """The tree of one broker, from `now` on."""

    def __init__(self, broker: Broker, now: float) -> None:
        self._broker = broker
        self._began = now
        self._at = now
        self._told: dict[str, str] = {}
        self._loads = [Load(name, total) for name, total in self._totals()]

    def changed(self, census: Census, heap: tuple[int, int], now: float) -> list[tuple[str, str]]:
        """Name below $SYS/broker and value of all that differs from the last call.

        `heap` is the memory of the process now and at its highest; 0 where that isn't known.
        """
        elapsed = now - self._at
        if elapsed > 0:
            self._at = now
            for load, (_, total) in zip(self._loads, self._totals(), strict=True):
                load.update(total, elapsed)
        told = self._told
        news = []
        for name, value in self._values(census, heap, now):
            if told.get(name) != value:
                told[name] = value
                news.append((name, value))
        return news

    def forget(self) -> None:
        """What was told may not have arrived: tell all of it with the next call."""
        self._told.clear()

    def _totals(self) -> list[tuple[str, int]]:
        counters = self._broker.counters
        return [
            ("messages/received", counters.packets_received),
            ("messages/sent", counters.packets_sent + counters.publish_sent),
            ("publish/received", counters.publish_received),
            ("publish/sent", counters.publish_sent),
            ("publish/dropped", sum(counters.dropped.values())),
            ("bytes/received", counters.bytes_received),
            ("bytes/sent", counters.bytes_sent),
            ("connections", counters.connects_accepted + _refused_connects(counters)),
            ("sockets", counters.connections_total),
        ]

    def _values(self, census: Census, heap: tuple[int, int], now: float) -> list[tuple[str, str]]:
        broker = self._broker
        counters = broker.counters
        clients = len(broker.sessions)
        connected = counters.clients_connected
        stored = census.retained + census.queued + census.inflight
        stored_bytes = census.retained_bytes + census.queued_bytes + census.inflight_bytes
        numbers = [
            ("clients/total", clients),
            ("clients/connected", connected),
            ("clients/active", connected),
            ("clients/disconnected", clients - connected),
            ("clients/inactive", clients - connected),
            ("clients/maximum", counters.clients_maximum),
            ("clients/expired", counters.sessions_expired),
            ("connections/socket/count", counters.connections),
            ("messages/received", counters.packets_received),
            ("messages/sent", counters.packets_sent + counters.publish_sent),
            ("messages/stored", stored),
            ("store/messages/count", stored),
            ("store/messages/bytes", stored_bytes),
            ("publish/messages/received", counters.publish_received),
            ("publish/messages/sent", counters.publish_sent),
            ("publish/messages/dropped", sum(counters.dropped.values())),
            ("publish/bytes/received", counters.publish_bytes_received),
            ("publish/bytes/sent", counters.publish_bytes_sent),
            ("bytes/received", counters.bytes_received),
            ("bytes/sent", counters.bytes_sent),
            ("subscriptions/count", census.subscriptions),
            ("shared_subscriptions/count", census.shared_subscriptions),
            ("retained messages/count", census.retained),
        ]
        if heap[0]:
            numbers += [("heap/current", heap[0]), ("heap/maximum", heap[1])]
        values = [("uptime", f"{int(now - self._began)} seconds")]
        values += [(name, str(number)) for name, number in numbers]
        for load in self._loads:
            values += load.texts()
        return values
