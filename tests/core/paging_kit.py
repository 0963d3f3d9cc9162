"""A store of deliveries that is no store: rows in a dict, pages out of them.

`Shelf` keeps what batches of the journal say of deliveries, by serial, and makes new objects of it
for a page, as a store on a disk does. `Paged` is the harness that has one: `commit` writes what was
journalled and serves the pages that are wanted; a test that looks in between does so by `write`,
`ask` and `serve`. A payload of `HALF` fills half a head of somebody who is absent.
"""

from mqttd.core import journal as j
from mqttd.core.inflight import QUEUED, Delivery
from mqttd.core.journal import Batch
from mqttd.core.message import Message
from mqttd.core.packets import Connect, Filter, Publish, Subscribe
from mqttd.core.queue import Queue
from mqttd.core.restore import stored_delivery
from mqttd.core.session import PageRequest, Session
from mqttd.core.settings import Settings
from tests.core.rig import make_settings
from tests.core.vectors import props
from tests.harness import FakeClient, Harness


class Row:
    """A delivery in the values that a store would keep."""

    def __init__(self, owner: int, delivery: Delivery, serial: int) -> None:
        message = delivery.message
        self.owner = owner
        self.serial = serial
        self.topic = message.topic
        self.payload = message.payload
        self.qos = message.qos
        self.retain = message.retain
        self.properties = message.properties
        self.expires_at = message.expires_at
        self.granted = delivery.qos
        self.as_retained = delivery.retain
        self.identifiers = delivery.identifiers
        # What is lent to a member that doesn't last is still the group's.
        self.packet_id = 0 if delivery.lent else delivery.packet_id
        self.state = QUEUED if delivery.lent else delivery.state
        self.share = 0 if delivery.group is None else delivery.group.number

    def delivery(self) -> Delivery:
        key = self.topic.encode()
        message = Message(
            self.topic,
            key,
            self.payload,
            self.qos,
            self.retain,
            self.properties,
            self.expires_at,
            "",
        )
        return stored_delivery(
            message,
            self.serial,
            self.serial,
            False,
            self.granted,
            self.as_retained,
            self.identifiers,
        )


class Shelf:
    """What is durable of deliveries."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}  # by serial
        self.shares: dict[tuple[str, str], int] = {}
        self.read = 0  # deliveries that were read back

    def write(self, batch: Batch) -> None:
        rows = self.rows
        for op in batch.ops:
            delivery = op.delivery
            if op.kind == j.DELIVERY_ADD:
                assert delivery is not None
                assert op.serial not in rows
                rows[op.serial] = Row(op.number, delivery, op.serial)
            elif op.kind == j.DELIVERY_UPDATE:
                assert delivery is not None
                assert rows[op.serial].owner == op.number
                rows[op.serial].packet_id = delivery.packet_id
                rows[op.serial].state = delivery.state
            elif op.kind == j.DELIVERY_SETTLE:
                del rows[op.serial]
            elif op.kind == j.DELIVERY_FORGET:
                del rows[op.number]
            elif op.kind == j.GROUP_SAVE:
                self.shares[op.owner, op.name] = op.number
            elif op.kind == j.GROUP_DROP:
                del self.shares[op.owner, op.name]
        for serials in batch.garbage:
            for serial in serials:
                del rows[serial]

    def put(self, owner: int, delivery: Delivery, packet_id: int = 0) -> None:
        """A row that was there before the test began."""
        row = self.rows[delivery.serial] = Row(owner, delivery, delivery.serial)
        row.packet_id = packet_id

    def of(self, owner: int) -> list[bytes]:
        """The payloads of an owner's rows, in order."""
        return [self.rows[at].payload for at in sorted(self.rows) if self.rows[at].owner == owner]

    def page(self, request: PageRequest, most: int = 1 << 30) -> list[Delivery]:
        """What a store answers; perhaps not all of it at once."""
        found = [self.rows[serial] for serial in request.serials if serial in self.rows]
        page = [row.delivery() for row in found[:most]]
        self.read += len(page)
        return page

    def expired(self, now: float) -> list[tuple[int, int]]:
        """What housekeeping comes across: owners and serials, wherever the delivery is by now."""
        return [
            (row.owner, row.serial)
            for row in self.rows.values()
            if row.expires_at and now >= row.expires_at
        ]


class Paged(Harness):
    """A durable broker whose queues page."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings, True)
        self.broker.journal.paging = True
        self.shelf = Shelf()
        self.most = 1 << 30  # deliveries in a page
        self.pending: list[PageRequest] = []  # taken, not yet served

    def write(self) -> bool:
        """Commit one batch, if there is something to commit."""
        batch = self.broker.take_batch()
        if batch is None:
            return False
        self.shelf.write(batch)
        self.broker.committed(batch.seq, self.now)
        self.flush()
        return True

    def ask(self) -> bool:
        """Take the pages that are wanted; whether there are any."""
        taken = self.broker.take_requests()
        self.pending += taken
        return bool(taken)

    def serve(self) -> bool:
        """Answer the oldest wish for a page."""
        if not self.pending:
            return False
        request = self.pending.pop(0)
        self.broker.paged(request, self.shelf.page(request, self.most), self.now)
        self.flush()
        return True

    def commit(self) -> None:
        """Until nothing is left to write or to read."""
        for _ in range(100000):
            wrote = self.write()
            asked = self.ask()
            while self.serve():
                pass
            if not wrote and not asked:
                return
        raise AssertionError("the journal never comes to rest")

    def tidy(self) -> None:
        """Housekeeping of the store."""
        self.broker.expired(self.shelf.expired(self.now))

    def check(self) -> None:
        """[the balance] Every match is in exactly one place; nothing was a bug."""
        queued, inflight = self.broker.balance()
        counters = self.broker.counters
        ended = counters.delivered + sum(counters.dropped.values())
        assert counters.matched == ended + queued + inflight
        assert counters.bugs == 0


HALF = 33 << 10


def paged(**values: object) -> Paged:
    return Paged(make_settings(**values))


def come(h: Paged, *, clean: bool = False, maximum: int = 1000, ack: bool = True) -> FakeClient:
    """The client "c", connected; its CONNACK may wait for a commit."""
    client = h.open()
    client.auto_ack = ack
    asked = props(session_expiry_interval=1000, receive_maximum=maximum)
    client.send(Connect(clean_start=clean, client_id="c", properties=asked))
    return client


def subscribed(h: Paged, qos: int = 2) -> FakeClient:
    client = come(h)
    client.send(Subscribe(1, [Filter("t", qos)]))
    h.commit()
    client.recv()
    return client


def absent(h: Paged) -> Session:
    """The session "c", subscribed to "t" and without a connection."""
    subscribed(h).drop()
    h.commit()
    return h.broker.sessions["c"]


def send(h: Paged, *names: int, qos: int = 1, expires_at: float = 0.0, size: int = 0) -> None:
    for name in names:
        payload = b"%d" % name
        payload += bytes(max(0, size - len(payload)))
        h.broker.publish(Message("t", b"t", payload, qos, False, b"", expires_at, "p"), h.now)
    h.flush()


def names(packets: list[Publish]) -> list[int]:
    return [int(packet.payload.rstrip(b"\0")) for packet in packets]


def queue_of(session: Session) -> Queue:
    assert session.queue is not None
    return session.queue


def deep(h: Paged, size: int = 200) -> Session:
    """An absent session for which 0, 1, 2 … wait: 64 in the head, the rest in the store."""
    session = absent(h)
    send(h, *range(size))
    h.commit()
    assert (len(queue_of(session).head), queue_of(session).tail) == (64, size - 64)
    return session
