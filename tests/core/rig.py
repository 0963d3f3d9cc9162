"""Sessions without a broker: what `test_session`, `test_shared` and `test_outbound` stand on.

A `Rig` is one `Context` and any number of sessions in it, each with a plain `Outbound` where the
broker would put a `Connection`. Nothing here takes the place of a class under test: natively
compiled classes can't be subclassed from a test, and what isn't faked can't lie. What a link would
write is framed and decoded, so that tests speak of packets.

The clock is whatever a test passes as `now`.
"""

from typing import Any

from mqttd.core.counters import Counters
from mqttd.core.decode import decode_packet
from mqttd.core.framer import Framer
from mqttd.core.journal import Journal
from mqttd.core.message import Message
from mqttd.core.outbound import Outbound
from mqttd.core.packets import Publish, Pubrel, Record
from mqttd.core.queue import Queue
from mqttd.core.session import Context, Session
from mqttd.core.settings import Settings
from mqttd.core.trie import Subscription, Trie

FRAME = b"\x40\x02\x00\x07"  # a PUBACK, where any acknowledgement will do


def make_settings(**values: Any) -> Settings:
    """Settings that differ from the defaults by `values`."""
    made = Settings()
    for name, value in values.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made


def make_message(
    payload: bytes = b"x",
    qos: int = 1,
    *,
    topic: str = "t",
    retain: bool = False,
    properties: bytes = b"",
    expires_at: float = 0.0,
    origin: str = "publisher",
) -> Message:
    key = topic.encode("utf-8")
    return Message(topic, key, payload, qos, retain, properties, expires_at, origin)


def packets(data: bytes, version: int = 5) -> list[Record]:
    """What these bytes are for a client of this version."""
    framer = Framer(268435460)
    framer.feed(data)
    found: list[Record] = []
    while framer.next():
        found.append(decode_packet(framer.first, framer.data, framer.pos, framer.end, version))
    assert framer.pending == 0
    return found


class Rig:
    """One context; `durable` says whether its journal records anything."""

    def __init__(self, durable: bool = False, **values: Any) -> None:
        self.counters = Counters()
        self.journal = Journal(durable)
        self.context = Context(make_settings(**values), self.counters, self.journal)
        self.dirty: list[Outbound] = []
        self.trie = Trie()

    def link(self, version: int = 5, *, writable: bool = True) -> Outbound:
        """A connection whose CONNACK has left."""
        link = Outbound(self.context, self.dirty)
        link.version = version
        link.established = True
        link.writable = writable
        return link

    def session(
        self,
        client_id: str = "s",
        receive_maximum: int = 10,
        *,
        version: int = 5,
        durable: bool = False,
        online: bool = True,
    ) -> Session:
        session = Session(client_id, None, self.context)
        session.durable = durable
        if online:
            session.attach(self.link(version), receive_maximum)
        return session

    def join(self, session: Session, topic_filter: str, qos: int, group: str = "") -> Subscription:
        """Subscribe a session; with a share name, as a member of that group."""
        name = f"$share/{group}/{topic_filter}" if group else topic_filter
        subscription = Subscription(session, name, qos)
        self.trie.insert(subscription, group, topic_filter)
        session.subscriptions[name] = subscription
        if group:
            assert subscription.group is not None
            session.grouped = {**(session.grouped or {}), subscription.group: None}
        return subscription

    def commit(self, now: float = 0.0) -> None:
        """Make everything recorded so far durable, and let the sessions go on."""
        batch = self.journal.take()
        if batch is not None:
            self.journal.commit(batch.seq)
        for holder in list(self.context.holding):
            holder.release()
        waiting = self.context.waiting
        self.context.waiting = []
        for session in waiting:
            session.waiting = False
            session.pump(now)


def sent(session: Session) -> list[Record]:
    """What the session's link would write by now."""
    link = session.link
    assert isinstance(link, Outbound)
    return packets(link.data_to_send(), link.version)


def publishes(session: Session) -> list[Publish]:
    """The same, when it is nothing but PUBLISH packets."""
    found = sent(session)
    for packet in found:
        assert isinstance(packet, Publish), packet
    return [packet for packet in found if isinstance(packet, Publish)]


def payloads(session: Session) -> list[bytes]:
    return [packet.payload for packet in publishes(session)]


def pubrels(session: Session) -> list[int]:
    """The packet identifiers of PUBREL packets, when there is nothing else."""
    found = sent(session)
    for packet in found:
        assert isinstance(packet, Pubrel), packet
    return [packet.packet_id for packet in found if isinstance(packet, Pubrel)]


def waiting(queue: Queue | None) -> list[bytes]:
    """The payloads in the head of a queue, which is all of it unless a store has the rest."""
    return [] if queue is None else [delivery.message.payload for delivery in queue.head]


def publish_as(session: Session, message: Message, now: float = 0.0, qos: int = -1) -> None:
    """Deliver to a session as the broker does: counted as matched, at the lower QoS."""
    session.context.counters.matched += 1
    session.deliver(message, message.qos if qos < 0 else qos, False, b"", now)


def balanced(rig: Rig, *sessions: Session) -> bool:
    """matched == delivered + queued + inflight + dropped, over these sessions."""
    waiting = 0
    for session in sessions:
        waiting += len(session.window.deliveries) + len(session.queue or ())
    counters = rig.counters
    return counters.matched == counters.delivered + waiting + sum(counters.dropped.values())
