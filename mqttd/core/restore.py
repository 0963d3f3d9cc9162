"""A broker as it was: sessions, windows, queues and retained messages put back after a restart.

Owns: the order in which the pieces come (sessions, then what hangs on them, then retained messages,
then `finish`) and what becomes of those that ended while the broker was away. Whoever kept the
pieces calls one method for each; instants are already in the core's clock and may lie in the past.

Must not know: rows, files, the wall clock.

Invariants: nobody is connected before `finish` returns; what `finish` decides goes through the
journal, so that the store hears of it like of anything else; a delivery that has a packet
identifier may have been sent, so its next sending is a DUP; every delivery put back counts as
matched, which keeps the balance of `mqttd.core.counters`.
"""

from collections import deque

from mqttd.core import counters as count
from mqttd.core.broker import Broker
from mqttd.core.inflight import RELEASED, SENT, Delivery
from mqttd.core.message import Message
from mqttd.core.packets import Will
from mqttd.core.session import Session
from mqttd.core.settings import NEVER
from mqttd.core.shared import give_back
from mqttd.core.topics import split_shared
from mqttd.core.trie import SharedGroup, Subscription


class Restorer:
    """Puts the pieces into a fresh broker."""

    def __init__(self, broker: Broker, now: float) -> None:
        self.broker = broker
        self.now = now
        self.deliveries = 0
        self._context = broker.context
        self._groups: dict[str, SharedGroup] = {}
        self._strays: list[Delivery] = []

    def session(
        self,
        client_id: str,
        owner: str | None,
        expiry_interval: int,
        connected: bool,
        expires_at: float,
        will_at: float,
    ) -> None:
        """A session; the instants are 0.0 for none. `connected`: when the broker last wrote it."""
        session = Session(client_id, owner, self._context)
        session.expiry_interval = expiry_interval
        session.durable = True
        session.stored = True
        if not connected:
            session.expires_at = expires_at
            session.will_at = will_at
        elif expiry_interval != NEVER:
            # The connection ended with the broker, and the broker is back only now.
            session.expires_at = self._instant(self.now + expiry_interval)
        self.broker.sessions[client_id] = session

    def will(self, client_id: str, will: Will) -> None:
        """The will of a session; one that was connected left without saying goodbye."""
        session = self.broker.sessions.get(client_id)
        if session is None:
            return
        session.will = will
        if not session.will_at:  # [MQTT-3.1.2-8] the delay starts when the broker is back
            delay = min(will.delay_interval, session.expiry_interval)
            session.will_at = self._instant(self.now + delay)

    def subscription(
        self,
        client_id: str,
        topic_filter: str,
        qos: int,
        no_local: bool,
        retain_as_published: bool,
        retain_handling: int,
        identifier: int,
    ) -> None:
        """A subscription; those of one session come in the order of subscribing."""
        session = self.broker.sessions.get(client_id)
        if session is None:
            return
        subscription = Subscription(
            session,
            topic_filter,
            qos,
            no_local,
            retain_as_published,
            retain_handling,
            identifier,
            None,
        )
        group_name, inner = split_shared(topic_filter)
        self.broker.trie.insert(subscription, group_name, inner)
        session.subscriptions[topic_filter] = subscription
        group = subscription.group
        if group is not None:
            self._groups[group.name + "/" + group.topic_filter] = group
            if session.grouped is None:
                session.grouped = {}
            session.grouped[group] = None

    def inbound(self, client_id: str, packet_id: int) -> None:
        """An inbound QoS 2 exchange whose PUBREL is still to come. [MQTT-4.3.3-10]"""
        session = self.broker.sessions.get(client_id)
        if session is not None:
            session.inbound[packet_id] = 0  # the serial of no connection

    def delivery(
        self,
        client_id: str | None,
        share: str,
        message: Message,
        row: int,
        serial: int,
        packet_id: int,
        state: int,
        qos: int,
        retain: bool,
        identifiers: bytes,
    ) -> None:
        """One message on its way, in the order of `serial`.

        `client_id` is None in the own queue of the group `share`, which is "NAME/FILTER".
        """
        group = self._groups.get(share) if share else None
        delivery = Delivery(message, qos, retain, identifiers, group)
        delivery.row = row
        delivery.serial = serial
        delivery.journalled = True
        self.deliveries += 1
        self._context.counters.matched += 1
        if client_id is None:
            if group is None:
                self._strays.append(delivery)
            else:
                if group.queue is None:
                    group.queue = deque()
                group.queue.append(delivery)
                self.broker.context.queued_groups[group] = None
            return
        session = self.broker.sessions.get(client_id)
        if session is None:
            self._strays.append(delivery)
        elif packet_id and state in (SENT, RELEASED):
            delivery.packet_id = packet_id
            delivery.state = state
            delivery.sent = True  # [MQTT-3.3.1-1] perhaps: nobody wrote down the sending itself
            session.window.restore(delivery)
        else:
            queue = session.queue
            if queue is None:
                queue = session.queue = deque()
            queue.append(delivery)
            expires_at = message.expires_at
            if expires_at and (not session.queue_expiry or expires_at < session.queue_expiry):
                session.queue_expiry = expires_at

    def retained(self, message: Message) -> None:
        """The retained message of a topic."""
        self.broker.retained.set(message.topic, message)

    def finish(self, next_serial: int) -> None:
        """Everything is there: act on what happened, or would have, while the broker was away."""
        broker = self.broker
        broker.journal.next_serial = next_serial
        for delivery in self._strays:
            self._context.counters.drop(count.DROP_SESSION_ENDED)
            broker.journal.settle("", delivery)
        for session in list(broker.sessions.values()):
            if session.grouped is not None:
                orphans = session.detach()
                if orphans:
                    give_back(orphans, self._context)
            broker.resume(session, self.now)
        broker.handle_timeout(self.now)

    def _instant(self, at: float) -> float:
        """0.0 says "none", so an instant is never that."""
        return at if at > 0.0 else 1e-9
