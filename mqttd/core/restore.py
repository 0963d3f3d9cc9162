"""A broker as it was: sessions, windows, queues, retained messages put back after a restart.

Owns: the order in which the pieces come (sessions, then what hangs on them, then retained messages
and the rows of plugins, then `finish`) and what becomes of those that ended while the broker was
away. Whoever kept the pieces calls one method for each; instants are already in the core's clock
and may lie in the past.

Must not know: rows, files, the wall clock.

Invariants: nobody is connected before `finish` returns; what `finish` decides goes through the
journal, so that the store hears of it like of anything else; a delivery that has a packet
identifier may have been sent, so its next sending is a DUP; every delivery put back counts as
matched, which keeps the balance of `mqttd.core.counters`. Of a queue no more than the serials is
needed: who wants its messages asks for pages.
"""

from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import SESSION_SAVE
from mqttd.core.message import Message
from mqttd.core.packets import Will
from mqttd.core.queue import Queue
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
        self._cut_off: list[str] = []  # sessions that were connected
        self._groups: dict[str, SharedGroup] = {}
        self._owners: dict[int, Session | SharedGroup] = {}

    def session(
        self,
        client_id: str,
        number: int,
        owner: str | None,
        expiry_interval: int,
        connected: bool,
        expires_at: float,
        will_at: float,
    ) -> None:
        """A session; the instants are 0.0 for none. `connected`: when the broker last wrote it."""
        session = Session(client_id, owner, self._context)
        session.number = number
        self._owners[number] = session
        session.expiry_interval = expiry_interval
        session.durable = True
        session.stored = True
        if not connected:
            session.expires_at = expires_at
            session.will_at = will_at
        else:
            # The connection ended with the broker, and the broker is back only now.
            if expiry_interval != NEVER:
                session.expires_at = self._instant(self.now + expiry_interval)
            self._cut_off.append(client_id)
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

    def group(self, name: str, topic_filter: str, number: int) -> bool:
        """A shared group that the store knows; False when it has no members any more."""
        group = self._groups.get(name + "/" + topic_filter)
        if group is None:
            return False
        group.number = number
        self._owners[number] = group
        return True

    def sent(self, number: int, delivery: Delivery, share: int, packet_id: int, state: int) -> bool:
        """A delivery of a session's window, in the order of the serials.

        `share` is the number of the group that it came through, or 0. False for one that is
        nobody's.
        """
        session = self._owners.get(number)
        if not isinstance(session, Session):
            return False
        group = self._owners.get(share) if share else None
        if isinstance(group, SharedGroup):
            delivery.group = group
        delivery.packet_id = packet_id
        delivery.state = state
        delivery.sent = True  # [MQTT-3.3.1-1] perhaps: nobody wrote down the sending itself
        session.window.restore(delivery)
        self.deliveries += 1
        self._context.counters.matched += 1
        return True

    def queued(self, number: int, serial: int) -> bool:
        """A delivery that waits in a queue, in the order of the serials; it stays with the store.

        False for one that is nobody's.
        """
        queue = self._context.tails.get(number)
        if queue is None:
            owner = self._owners.get(number)
            if owner is None:
                return False
            if isinstance(owner, SharedGroup):
                queue = Queue(number, True, "", owner.title)
            else:
                queue = Queue(number, True, owner.client_id)
            owner.queue = queue
            self._context.tails[number] = queue
            if isinstance(owner, SharedGroup):
                self._context.queued_groups[owner] = None
        queue.leave(serial)
        self.deliveries += 1
        self._context.counters.matched += 1
        return True

    def retained(self, message: Message) -> None:
        """The retained message of a topic."""
        self.broker.retained.set(message.topic, message)

    def row(self, table: str, key: str, value: bytes) -> None:
        """A row of a table that a plugin keeps."""
        self.broker.tables.restore(table, key, value)

    def finish(self, next_number: int, next_serial: int, front_serial: int) -> None:
        """Everything is there: act on what happened, or would have, while the broker was away.

        The three are the first that are free, `front_serial` downwards.
        """
        broker = self.broker
        broker.journal.next_number = next_number
        broker.journal.next_serial = next_serial
        broker.journal.durable = next_serial - 1
        broker.journal.front_serial = front_serial
        broker.recall_wills()  # first: what is due from here on needs rows of its own
        for session in list(broker.sessions.values()):
            if session.grouped is not None:
                orphans = session.detach()
                if orphans:
                    give_back(orphans, self._context, False)
            broker.resume(session, self.now)
        for client_id in self._cut_off:
            # Its time runs from here, and another start must not begin it anew.
            if client_id in broker.sessions:
                broker.journal.record(SESSION_SAVE, client_id)
        broker.handle_timeout(self.now)

    def _instant(self, at: float) -> float:
        """0.0 says "none", so an instant is never that."""
        return at if at > 0.0 else 1e-9


def stored_delivery(
    message: Message,
    serial: int,
    row: int,
    shared: bool,
    qos: int,
    retain: bool,
    identifiers: bytes,
    redeliveries: int = 0,
) -> Delivery:
    """A delivery that the store has."""
    delivery = Delivery(message, qos, retain, identifiers, None)
    delivery.redeliveries = redeliveries
    delivery.serial = serial
    delivery.row = row
    delivery.shared = shared
    delivery.journalled = True
    return delivery
