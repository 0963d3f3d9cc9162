"""A count of what no counter says: what waits for sessions, what they subscribed to.

Owns: `Census`, one walk over all sessions and shared queues, in steps that the caller paces, so
that fifty thousand sessions never keep the loop from its clients. Nothing is counted on the path
of a message for this.

Must not know: the clock, who asks, how the figures are called.

Invariants: a step visits no more than its budget of sessions and deliveries, plus one session;
sessions that come during the walk aren't in it, those that go count for nothing. Bytes are of
payload in memory: of a deep queue only the head is (mqttd/core/queue.py), and a message that is on
its way to three receivers counts three times. Retained messages of the broker itself, those under
`$SYS`, don't count.
"""

from __future__ import annotations

from typing import Final

from mqttd.core.broker import Broker
from mqttd.core.connection import Connection
from mqttd.core.queue import Queue
from mqttd.core.session import Session
from mqttd.core.shared import queue_of

STEP: Final = 500


class Census:
    """One walk; the figures are good once `step` has said so."""

    def __init__(self, broker: Broker) -> None:
        self.connected: dict[tuple[str, int], int] = {}  # by listener and protocol level
        self.subscriptions = 0
        self.shared_subscriptions = 0
        self.queued = 0
        self.queued_bytes = 0
        self.inflight = 0
        self.inflight_bytes = 0
        self.retained = 0
        self.retained_bytes = 0
        self._broker = broker
        self._left: list[Session] = list(broker.sessions.values())

    def step(self, budget: int = STEP) -> bool:
        """Count some more; True when all are counted."""
        left = self._left
        while left and budget > 0:
            session = left.pop()
            self._count(session)
            budget -= 1 + len(session.window.deliveries)
        if left:
            return False
        for group in self._broker.context.queued_groups:
            self._count_queue(queue_of(group))
        self._count_retained()
        return True

    def _count(self, session: Session) -> None:
        link = session.link
        if isinstance(link, Connection):
            key = (link.listener.name, link.version)
            self.connected[key] = self.connected.get(key, 0) + 1
        self.subscriptions += len(session.subscriptions)
        if session.grouped is not None:
            self.shared_subscriptions += len(session.grouped)
        self._count_queue(session.queue)
        deliveries = session.window.deliveries
        if deliveries:
            self.inflight += len(deliveries)
            self.inflight_bytes += sum(len(d.message.payload) for d in deliveries.values())

    def _count_retained(self) -> None:
        retained = self._broker.retained
        self.retained = retained.count
        self.retained_bytes = retained.payload_bytes
        own = retained.cursor("$SYS/#")  # some dozens; nobody else can write there
        while not own.done:
            for message in own.take(100):
                self.retained -= 1
                self.retained_bytes -= len(message.payload)

    def _count_queue(self, queue: Queue | None) -> None:
        if queue is not None:
            self.queued += len(queue)
            self.queued_bytes += queue.payload_bytes
