"""Deep queues of sessions: expiry, the other qualities of service, and whatever else may happen."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import counters as count
from mqttd.core.outbound import Held
from mqttd.core.packets import Connect, Filter, Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe
from mqttd.core.queue import PAGE, PAGE_BYTES, Queue
from mqttd.core.session import PageRequest
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from tests.core.paging_kit import HALF, absent, come, deep, names, paged, queue_of, send, subscribed
from tests.core.vectors import props, untimed
from tests.harness import FakeClient

# Expiry.


def test_what_expires_in_the_tail_is_not_delivered() -> None:
    """[MQTT-3.3.2-5]"""
    h = paged()
    session = deep(h)
    send(h, 200, 201, expires_at=h.now + 5)
    send(h, 202)
    h.commit()
    assert queue_of(session).tail == 139
    h.now += 5
    client = come(h)
    h.commit()
    assert names(client.messages()) == [*range(200), 202]
    assert h.dropped == {count.DROP_EXPIRED: 2}
    assert not h.shelf.rows
    h.check()


def test_what_the_store_finds_expired_in_tails_leaves_them() -> None:
    """[MQTT-3.3.2-5] What isn't in a tail is seen to when its turn comes."""
    h = paged()
    session = absent(h)
    for name in range(200):
        send(h, name, expires_at=h.now + 5 if name % 2 else 0.0)
    h.commit()
    h.now += 5
    h.tidy()
    h.tidy()  # found again before anything was committed
    assert h.dropped == {count.DROP_EXPIRED: 68}
    assert len(queue_of(session)) == 132
    h.check()
    h.commit()
    assert len(h.shelf.rows) == 132
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(0, 200, 2))
    assert h.dropped == {count.DROP_EXPIRED: 100}
    assert not h.shelf.rows
    h.check()


def test_what_is_on_its_way_when_it_is_found_expired_is_dropped_once() -> None:
    h = paged()
    deep(h)
    send(h, 200, 201, expires_at=h.now + 5)
    h.commit()
    client = come(h)
    h.write()
    assert h.ask()
    h.now += 5
    h.tidy()
    assert h.dropped == {}
    h.most = 100  # the rest is asked for again
    h.commit()
    assert names(client.messages()) == list(range(200))
    assert h.dropped == {count.DROP_EXPIRED: 2}
    h.check()
    assert not h.shelf.rows


def test_a_page_cut_short_may_still_be_found_expired() -> None:
    h = paged()
    session = deep(h)
    send(h, 200, 201, expires_at=h.now + 5)
    h.commit()
    client = come(h, maximum=1, ack=False)
    h.write()
    assert h.ask()
    h.now += 5
    h.tidy()  # all of it is on its way
    client.drop()
    h.most = 100
    h.serve()
    assert queue_of(session).tail == 38
    h.tidy()
    assert queue_of(session).tail == 36
    assert h.dropped == {count.DROP_EXPIRED: 2}
    h.check()


@pytest.mark.parametrize("online", [False, True])
def test_a_tail_that_expires_as_a_whole_leaves_nothing_behind(online: bool) -> None:
    h = paged()
    session = absent(h)
    send(h, *range(64))
    send(h, *range(64, 100), expires_at=h.now + 5)
    if not online:
        h.commit()
    client = come(h, ack=False) if online else None
    if client is not None:
        # The page can't be asked for: what it is to bring isn't durable.
        session.barrier = 0
        client.connection.release()
    h.now += 5
    h.write()
    h.tidy()
    assert queue_of(session).tail == 0
    assert not h.broker.context.tails
    h.check()
    if client is None:
        client = come(h, ack=False)
    h.commit()
    for packet in client.messages():
        client.send(Puback(packet.packet_id))
    send(h, 200)
    h.commit()
    assert names(client.messages()) == [200]
    assert session.queue is None
    h.check()


def test_a_page_that_nothing_is_left_for_is_not_asked_for() -> None:
    """And what comes next is not left waiting behind it."""
    h = paged()
    session = absent(h)
    send(h, *range(64))
    send(h, *range(64, 100), expires_at=h.now + 5)
    h.commit()
    client = come(h, ack=False)
    h.write()  # CONNACK leaves: a page is wanted
    for packet in client.messages():
        client.send(Puback(packet.packet_id))
    h.now += 5
    h.tidy()
    assert not h.ask()
    h.commit()
    send(h, 200)
    assert names(client.messages()) == [200]
    assert session.queue is None
    h.check()


def test_a_head_that_is_left_alone_goes_on_without_a_tail() -> None:
    """[MQTT-3.3.2-5]"""
    h = paged()
    session = absent(h)
    send(h, *range(64))
    send(h, *range(64, 100), expires_at=h.now + 5)
    h.commit()
    client = come(h, maximum=3, ack=False)
    h.write()
    assert queue_of(session).wanting
    h.now += 5
    h.tidy()
    assert not h.ask()
    assert not queue_of(session).wanting
    got = []
    while packets := client.messages():
        got += names(packets)
        for packet in packets:
            client.send(Puback(packet.packet_id))
    assert got == list(range(64))
    h.check()


def test_a_queue_may_end_while_one_of_its_messages_does() -> None:
    """A settlement frees a CONNACK, behind which the session sends at once."""
    h = paged()
    client = subscribed(h)
    session = h.broker.sessions["c"]
    client.pause()
    send(h, 1, expires_at=h.now + 5)
    connection = client.connection
    connection._held = deque([Held(b"\xd0\x00", 0, None, False, True)])
    queue_of(session).head[0].message.holder = connection
    h.now += 5
    client.resume()
    assert session.queue is None
    assert h.dropped == {count.DROP_EXPIRED: 1}
    h.check()


def test_a_request_of_nobody_is_answered_to_nobody() -> None:
    h = paged()
    queue = Queue(7, True)
    h.broker.paged(PageRequest(queue, None, None), [], h.now)
    assert not queue.wanting
    h.check()


def test_expired_messages_make_room_in_a_full_queue_that_is_paged() -> None:
    h = paged(max_queued_messages=100)
    session = absent(h)
    send(h, *range(64), expires_at=h.now + 5)
    send(h, *range(64, 100))
    h.now += 5
    send(h, 100)
    assert h.dropped == {count.DROP_EXPIRED: 64}
    assert len(queue_of(session)) == 37
    h.check()
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(64, 101))


def test_nothing_is_found_expired_where_nobody_has_a_tail() -> None:
    h = paged()
    h.broker.expired([(99, 5), (98, 6)])
    h.broker.expired([])
    assert h.dropped == {}


def test_a_request_of_a_queue_that_has_gone_leaves_the_next_one_alone() -> None:
    """Its tail expires while it waits; a pump closes the queue; what comes next has its own."""
    h = paged()
    session = deep(h, 100)
    come(h, maximum=1, ack=False)
    h.write()
    queue = queue_of(session)
    assert queue.wanting
    queue.head.clear()
    h.broker.expired([(session.number, serial) for chunk in queue.chunks for serial in chunk])
    session.pump(h.now)
    assert session.queue is None
    session.quota = 0
    send(h, 500)
    assert session.queue is not queue
    assert h.broker.take_requests() == []
    assert [int(each.message.payload) for each in queue_of(session).head] == [500]


def test_what_came_while_a_page_was_given_up_is_sent() -> None:
    """All that was wanted has expired; the client is there, idle, with an open window."""
    h = paged()
    session = deep(h, 100)
    client = come(h)
    h.write()
    queue = queue_of(session)
    queue.head.clear()
    h.broker.expired([(session.number, serial) for chunk in queue.chunks for serial in chunk])
    send(h, 500)
    assert h.broker.take_requests() == []
    h.commit()
    assert names(client.messages()) == [*range(64), 500]
    assert not h.broker.context.tails


def test_a_head_goes_back_to_the_tail_when_its_owner_leaves() -> None:
    h = paged()
    session = deep(h, 400)
    client = come(h, maximum=1, ack=False)
    h.commit()
    assert len(queue_of(session).head) > 300
    client.drop()
    assert len(queue_of(session).head) == 64
    again = come(h)
    h.commit()
    assert names(again.messages()) == list(range(400))


# QoS 0 and QoS 2.


def test_queued_qos_0_survives_and_is_settled_once_it_was_sent() -> None:
    h = paged(queue_qos0=True)
    session = absent(h)
    for name in range(100):
        send(h, name, qos=name % 2)
    h.commit()
    assert (len(queue_of(session).head), queue_of(session).tail) == (64, 36)
    assert len(h.shelf.rows) == 100
    client = come(h, ack=False)
    h.commit()
    packets = client.messages()
    assert names(packets) == list(range(100))
    assert [packet.qos for packet in packets] == [0, 1] * 50
    assert len(h.shelf.rows) == 50
    assert h.broker.balance() == (0, 50)
    h.check()


def test_queued_qos_0_may_be_too_large_for_the_client_that_comes() -> None:
    h = paged(queue_qos0=True)
    absent(h)
    send(h, 1, qos=0, size=100)
    h.commit()
    client = h.open()
    asked = props(session_expiry_interval=1000, maximum_packet_size=90)
    client.send(Connect(clean_start=False, client_id="c", properties=asked))
    h.commit()
    assert client.messages() == []
    assert h.dropped == {count.DROP_TOO_LARGE: 1}
    assert not h.shelf.rows
    h.check()


def test_qos_2_out_of_a_page_waits_for_its_identifier() -> None:
    h = paged()
    absent(h)
    send(h, *range(70), qos=2)
    h.commit()
    client = come(h)
    h.write()
    assert h.ask()
    h.write()
    assert len(client.messages()) == 64
    assert h.serve()
    assert client.messages() == []
    h.write()
    assert names(client.messages()) == list(range(64, 70))
    h.commit()
    h.check()
    assert not h.shelf.rows


def test_a_publisher_waits_for_what_only_the_store_has() -> None:
    """[MQTT-4.3.2-4] and for nothing else."""
    h = paged()
    absent(h)
    publisher = h.client("p")
    for name in range(70):
        publisher.publish("t", b"%d" % name, 1)
    assert publisher.recv() == []
    h.commit()
    assert len(publisher.recv()) == 70


def test_a_message_behind_a_barrier_may_be_left_to_the_store() -> None:
    """[MQTT-4.3.3-8] QoS 2 of a publisher with a session of its own."""
    h = paged()
    session = absent(h)
    publisher = h.client("p", expiry=1000)
    h.commit()
    for name in range(70):
        publisher.publish("t", b"%d" % name, 2)
    assert queue_of(session).tail == 6
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(70))
    h.commit()
    h.check()
    assert not h.shelf.rows


def test_qos_0_behind_a_barrier_is_journalled_when_it_is_left() -> None:
    h = paged()
    client = subscribed(h, qos=0)
    h.client("p", expiry=1000)
    session = h.broker.sessions["c"]
    client.pause()
    publisher = h.client("q", expiry=1000)
    for name in range(PAGE + 5):
        publisher.publish("t", b"%d" % name, 2)
        publisher.connection.inbound_open = 0
    assert (len(queue_of(session).head), queue_of(session).tail) == (PAGE, 5)
    h.write()
    assert len(h.shelf.rows) == 5
    client.resume()
    h.commit()
    assert names(client.messages()) == list(range(PAGE + 5))
    h.commit()
    assert not h.shelf.rows
    h.check()


# Whatever happens.


class Life:
    """One client that comes and goes, and what it has seen."""

    def __init__(self, overflow: str, limit: int) -> None:
        self.h = paged(
            max_queued_messages=limit, queue_overflow=overflow, queue_qos0=True, write_buffer=1
        )
        self.limit = limit
        self.client: FakeClient | None = None
        self.number = 0
        self.seen: list[int] = []  # of QoS > 0, in the order of their first arrival
        self.zero: list[int] = []  # of QoS 0
        self.fresh: set[int] = set()  # seen without DUP
        self.solid: list[int] = []  # published at QoS > 0
        self.unacked: list[Publish | Pubrel] = []

    def come(self, maximum: int, clean: bool = False) -> None:
        if self.client is not None:
            self.read()
        self.client = come(self.h, clean=clean, maximum=maximum, ack=False)
        self.client.send(Subscribe(1, [Filter("t", 2)]))
        self.unacked = []

    def act(self, move: str, number: int) -> None:
        h, client = self.h, self.client
        if move == "publish":
            self.number += 1
            expires_at = h.now + 3 if number == 7 else 0.0
            if number % 3:
                self.solid.append(self.number)
            size = PAGE_BYTES // 2 if number == 6 else HALF
            send(h, self.number, qos=number % 3, expires_at=expires_at, size=size)
        elif move == "write":
            h.write()
        elif move == "ask":
            h.ask()
        elif move == "serve":
            h.most = 1 + number
            h.serve()
        elif move == "come":
            self.come(1 + number)
        elif move == "clean":
            self.come(1 + number, True)
        elif move == "tidy":
            h.tidy()
        elif move == "wait":
            h.advance(1.0)
        elif client is not None and not client.closed:
            if move == "drop":
                client.drop()
                self.client = None
            elif move == "pause":
                client.pause()
            elif move == "resume":
                client.resume()
            elif move == "acknowledge":
                self.acknowledge(1 + number)
        self.read()

    def read(self) -> None:
        if self.client is None:
            return
        for packet in self.client.recv():
            if isinstance(packet, Pubrel):
                self.unacked.append(packet)
            elif isinstance(packet, Publish):
                (name,) = names([packet])
                if packet.qos == 0:
                    self.zero.append(name)
                    continue
                self.unacked.append(packet)
                if not packet.dup:
                    assert name not in self.fresh
                    self.fresh.add(name)
                if name not in self.seen:
                    self.seen.append(name)

    def acknowledge(self, at_most: int) -> None:
        client = self.client
        assert client is not None
        taken, self.unacked = self.unacked[:at_most], self.unacked[at_most:]
        for packet in taken:
            if client.closed:
                return
            if isinstance(packet, Pubrel):
                client.send(Pubcomp(packet.packet_id))
            elif packet.qos == 1:
                client.send(Puback(packet.packet_id))
            else:
                client.send(Pubrec(packet.packet_id))

    def drain(self) -> None:
        """The client comes once more and takes everything."""
        self.come(100)
        self.h.most = 1000
        for _ in range(200):
            self.h.commit()
            self.read()
            if not self.unacked:
                break
            self.acknowledge(1000)
        self.h.commit()
        self.read()

    def check(self) -> None:
        self.h.check()
        assert self.seen == sorted(set(self.seen))  # [MQTT-4.6.0-5]
        assert self.zero == sorted(set(self.zero))
        session = self.h.broker.sessions.get("c")
        if session is not None and session.queue is not None:
            queue = session.queue
            assert (queue.tail > 0) <= (self.h.broker.context.tails.get(session.number) is queue)
            if self.limit:
                assert len(queue) <= self.limit + (queue.coming > 0)


moves = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("publish", "publish", "publish", "publish", "write", "write", "ask", "serve"),
                *("acknowledge", "acknowledge", "drop", "come", "pause", "resume"),
            )
        ),
        st.integers(0, 7),
    ),
    max_size=60,
)
rarer = st.tuples(st.sampled_from(("clean", "tidy", "wait", "write", "come")), st.integers(0, 7))


@untimed
@given(moves)
def test_everything_arrives_once_and_in_order_whatever_happens(
    moves: list[tuple[str, int]],
) -> None:
    """[MQTT-4.5.0-1] [MQTT-4.6.0-5] Nothing is dropped here, so nothing may be missing."""
    life = Life(DROP_NEWEST, 0)
    life.come(10)
    life.h.commit()
    for move, number in moves:
        life.act(move, number if number < 7 else 6)
        life.check()
    life.drain()
    life.check()
    assert life.seen == life.solid
    assert life.h.broker.balance() == (0, 0)
    assert not life.h.shelf.rows
    assert not life.h.broker.context.tails


@untimed
@given(
    st.lists(st.one_of(moves.map(tuple), rarer.map(lambda each: (each,))), max_size=6),
    st.sampled_from((DROP_NEWEST, DROP_OLDEST)),
    st.sampled_from((3, 5, 8)),
)
def test_what_is_missing_was_counted_whatever_happens(
    parts: list[tuple[tuple[str, int], ...]], overflow: str, limit: int
) -> None:
    life = Life(overflow, limit)
    life.come(10)
    life.h.commit()
    for part in parts:
        for move, number in part:
            life.act(move, number)
            life.check()
    life.drain()
    life.check()
    h = life.h
    assert h.broker.balance() == (0, 0)
    assert not h.shelf.rows
    assert not h.broker.context.tails
    assert not h.broker.context.requests
