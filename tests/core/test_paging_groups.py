"""Deep queues of shared groups: paged like those of sessions, but for what members give back."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttd.core import counters as count
from mqttd.core import journal as j
from mqttd.core.message import Message
from mqttd.core.outbound import Held
from mqttd.core.packets import (
    Connect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)
from mqttd.core.queue import Queue
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from mqttd.core.shared import pull, queue_of
from mqttd.core.trie import SharedGroup
from tests.core.paging_kit import Paged
from tests.core.rig import make_settings
from tests.core.vectors import props, untimed
from tests.harness import FakeClient

HALF = 33 << 10  # half a head of a group nobody of which is there
SHARED = "$share/g/t"


def paged(**values: object) -> Paged:
    return Paged(make_settings(**values))


def member(
    h: Paged, name: str = "m", maximum: int = 1000, *, qos: int = 1, expiry: int = 1000
) -> FakeClient:
    """A member, connected and subscribed; it acknowledges when the test says so."""
    client = h.open()
    client.auto_ack = False
    asked = props(session_expiry_interval=expiry, receive_maximum=maximum)
    client.send(Connect(clean_start=False, client_id=name, properties=asked))
    client.send(Subscribe(1, [Filter(SHARED, qos)]))
    return client


def send(h: Paged, *names: int, qos: int = 1, expires_at: float = 0.0, size: int = 0) -> None:
    for name in names:
        payload = b"%d" % name
        payload += bytes(max(0, size - len(payload)))
        h.broker.publish(Message("t", b"t", payload, qos, False, b"", expires_at, "p"), h.now)
    h.flush()


def names(packets: list[Publish]) -> list[int]:
    return [int(packet.payload.rstrip(b"\0")) for packet in packets]


def acknowledge(client: FakeClient) -> list[int]:
    """Take what was received, QoS 1, and acknowledge it."""
    packets = client.messages()
    for packet in packets:
        client.send(Puback(packet.packet_id))
    return names(packets)


def the_group(h: Paged) -> SharedGroup:
    (group,) = h.broker.trie.match("t").groups
    return group


def the_queue(h: Paged) -> Queue:
    queue = queue_of(the_group(h))
    assert queue is not None
    return queue


def deep(h: Paged, size: int = 200) -> SharedGroup:
    """A group whose member is absent and for which 0, 1, 2 … wait."""
    client = member(h)
    h.commit()
    client.drop()
    send(h, *range(size))
    h.commit()
    queue = the_queue(h)
    assert (len(queue.head), queue.tail) == (64, size - 64)
    return the_group(h)


def test_the_queue_of_a_group_is_paged() -> None:
    h = paged()
    group = deep(h, 3000)
    assert h.shelf.shares == {("g", "t"): group.number}
    client = member(h, maximum=10)
    h.commit()
    got: list[int] = []
    while found := acknowledge(client):
        got += found
        h.commit()
        h.check()
    assert got == list(range(3000))
    assert group.queue is None
    assert not h.broker.context.tails
    assert not h.broker.context.queued_groups
    assert not h.shelf.rows


def test_nothing_is_asked_for_while_nobody_is_there() -> None:
    h = paged()
    group = deep(h)
    h.broker.context.groups[group] = None
    h.flush()
    h.commit()
    assert h.shelf.read == 0
    assert not the_queue(h).wanting


def test_acknowledgements_while_the_last_page_comes_lose_nothing() -> None:
    """[MQTT-4.6.0-6] the queue isn't over when its head is."""
    h = paged()
    deep(h, 100)
    client = member(h)
    h.write()
    h.flush()
    assert h.ask()
    assert acknowledge(client) == list(range(64))
    send(h, 100)
    assert client.messages() == []
    h.check()
    h.serve()
    h.commit()
    assert acknowledge(client) == list(range(64, 101))
    h.commit()
    h.check()
    assert not h.shelf.rows


def test_a_head_that_is_taken_at_once_is_followed_by_a_page() -> None:
    h = paged()
    client = member(h)
    h.commit()
    client.pause()
    send(h, *range(1050))
    h.commit()
    assert (len(the_queue(h).head), the_queue(h).tail) == (1000, 50)
    client.resume()
    assert the_queue(h).wanting
    assert acknowledge(client) == list(range(1000))
    h.commit()
    assert acknowledge(client) == list(range(1000, 1050))
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_group_may_end_while_one_of_its_messages_does() -> None:
    """A settlement frees a CONNACK, behind which the client's UNSUBSCRIBE is read."""
    h = paged()
    client = member(h)
    h.commit()
    client.pause()
    send(h, 1, expires_at=h.now + 5)
    group = the_group(h)
    connection = client.connection
    connection.suspended = True
    client.send(Unsubscribe(2, [SHARED]))
    connection._held = deque([Held(b"\xd0\x00", 0, None, False, True)])
    the_queue(h).head[0].message.holder = connection
    h.now += 5
    pull(group, h.now, h.broker.context)
    assert group.queue is None
    assert not h.broker.trie.match("t").groups
    assert h.dropped == {count.DROP_EXPIRED: 1}
    h.check()


def test_the_balance_needs_no_queue_where_a_group_has_none() -> None:
    h = paged()
    group = deep(h)
    assert h.broker.balance() == (200, 0)
    group.queue = None
    assert h.broker.balance() == (0, 0)


def test_what_is_given_back_goes_before_the_head_the_page_and_the_tail() -> None:
    h = paged()
    group = deep(h)
    client = member(h, maximum=5)
    h.write()
    assert h.ask()
    assert names(client.messages()) == [0, 1, 2, 3, 4]
    client.drop()
    queue = the_queue(h)
    assert (len(queue.head), queue.coming) == (64, 136)
    h.check()
    h.serve()
    h.commit()
    assert len(h.shelf.rows) == 200
    serials = sorted(h.shelf.rows)
    assert serials[:5] == [-5, -4, -3, -2, -1]
    assert h.shelf.of(group.number) == [b"%d" % name for name in range(200)]
    client = member(h)
    h.commit()
    assert acknowledge(client) == list(range(200))
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_queue_that_began_with_what_was_given_back_is_paged_as_well() -> None:
    h = paged()
    client = member(h, maximum=100)
    h.commit()
    send(h, *range(100))
    h.commit()
    client.drop()
    assert len(the_queue(h).head) == 100
    send(h, *range(100, 120))
    assert the_queue(h).tail == 20
    client = member(h, maximum=10)
    h.commit()
    h.check()
    got: list[int] = []
    while found := acknowledge(client):
        got += found
        h.commit()
        h.check()
    assert got == list(range(120))
    assert not h.shelf.rows


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_group_that_ends_leaves_nothing(asked: int) -> None:
    """[MQTT-4.8.2-2] `asked`: 1 wanted, 2 on its way."""
    h = paged()
    group = deep(h)
    number = group.number
    client = member(h, maximum=3)
    h.write()
    if asked == 2:
        assert h.ask()
    client.recv()
    if asked:
        client.send(Unsubscribe(2, [SHARED]))
    else:
        client.drop()
        h.advance(1001.0)
    h.check()
    assert group.queue is None
    assert group.number == 0
    batch = h.broker.take_batch()
    assert batch is not None
    drops = [(op.owner, op.name) for op in batch.ops if op.kind == j.GROUP_DROP]
    assert drops == [("g", "t")]
    h.shelf.write(batch)
    h.broker.committed(batch.seq, h.now)
    h.commit()
    h.check()
    assert h.shelf.shares == {}
    again = member(h, "other")
    h.commit()
    assert the_group(h).number == 0
    send(h, 1000)
    assert acknowledge(again) == [1000]
    h.commit()
    assert the_group(h).number > number
    if asked:  # three are still the client's own
        assert len(h.shelf.rows) == 3
    else:
        assert not h.shelf.rows
    assert not h.broker.context.tails
    assert not h.broker.context.requests


@pytest.mark.parametrize("returned", [False, True])
def test_a_durable_member_that_joins_makes_the_queue_durable_from_there_on(returned: bool) -> None:
    """`returned`: the first that the queue gets then is what another member gives back."""
    h = paged()
    fleeting = member(h, "fleeting", expiry=0, maximum=2)
    send(h, 0, 1, 2)
    queue = the_queue(h)
    assert (queue.number, queue.paging, the_group(h).number) == (0, False, 0)
    lasting = h.client("lasting", expiry=1000)
    lasting.pause()
    lasting.send(Subscribe(1, [Filter(SHARED, 1)]))
    lasting.drop()
    if returned:
        fleeting.drop()
        send(h, 3)
    else:
        send(h, 3)
        fleeting.drop()
    assert the_queue(h) is queue
    assert queue.number == the_group(h).number > 0
    send(h, *range(4, 100))
    assert (len(queue.head), queue.tail) == (64, 36)
    h.commit()
    h.check()
    assert len(h.shelf.rows) == 99  # all but the one that came before it
    lasting = member(h, "lasting")
    h.commit()
    assert acknowledge(lasting) == list(range(100))
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_group_that_was_durable_before_is_so_again() -> None:
    """A queue that began while no durable member was there pages once there is one."""
    h = paged()
    fleeting = member(h, "fleeting", expiry=0, maximum=2)
    lasting = member(h, "lasting")
    h.commit()
    send(h, 0, 1)
    assert acknowledge(lasting)
    assert the_group(h).number > 0
    lasting.send(Unsubscribe(2, [SHARED]))
    h.commit()
    send(h, 2, 3)
    queue = the_queue(h)
    assert not queue.paging
    lasting.pause()
    lasting.send(Subscribe(1, [Filter(SHARED, 1)]))
    lasting.drop()
    send(h, 4)
    fleeting.drop()
    send(h, *range(5, 100))
    assert queue.tail > 0
    h.commit()
    h.check()


def test_a_tail_outlives_the_durable_member() -> None:
    """What comes behind it is still left to the store, in order."""
    h = paged()
    group = deep(h)
    fleeting = member(h, "fleeting", expiry=0, maximum=5)
    h.advance(1001.0)
    assert "m" not in h.broker.sessions
    send(h, 200)
    assert the_queue(h).tail == 137
    h.commit()
    got: list[int] = []
    while found := acknowledge(fleeting):
        got += found
        h.commit()
    assert got == list(range(201))
    assert group.queue is None
    assert not h.shelf.rows
    h.check()


@pytest.mark.parametrize("written", [False, True])
def test_what_is_lent_to_a_member_that_does_not_last_stays_the_groups(written: bool) -> None:
    """A restart finds it in the queue again, without a packet identifier."""
    h = paged()
    lasting = member(h, "lasting")
    h.commit()
    lasting.drop()
    h.commit()
    send(h, 1)
    if written:
        h.commit()
    fleeting = member(h, "fleeting", expiry=0)
    packets = fleeting.messages()
    assert names(packets) == [1]
    h.commit()
    (row,) = h.shelf.rows.values()
    assert (row.owner, row.packet_id, row.state) == (the_group(h).number, 0, 0)
    fleeting.drop()
    h.commit()
    assert h.shelf.of(the_group(h).number) == [b"1"]
    lasting = member(h, "lasting")
    h.commit()
    assert acknowledge(lasting) == [1]
    h.commit()
    assert not h.shelf.rows
    h.check()


@pytest.mark.parametrize("overflow", [DROP_NEWEST, DROP_OLDEST])
def test_the_queue_of_a_group_has_one_bound(overflow: str) -> None:
    h = paged(max_queued_messages=100, queue_overflow=overflow)
    client = member(h)
    h.commit()
    client.drop()
    send(h, *range(150))
    h.commit()
    send(h, *range(150, 300))
    h.commit()
    assert len(the_queue(h)) == 100
    assert h.dropped == {count.DROP_QUEUE_FULL: 200}
    assert len(h.shelf.rows) == 100
    h.check()
    client = member(h)
    h.commit()
    expected = range(100) if overflow == DROP_NEWEST else range(200, 300)
    assert acknowledge(client) == list(expected)
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_queue_that_is_all_on_its_way_has_nothing_older_to_drop() -> None:
    h = paged(max_queued_messages=100, queue_overflow=DROP_OLDEST)
    deep(h, 100)
    client = member(h)
    h.write()
    assert h.ask()
    assert acknowledge(client) == list(range(64))
    send(h, *range(100, 200))
    assert len(the_queue(h)) <= 101
    h.commit()
    got = acknowledge(client)
    assert got == sorted(set(got))
    assert len(got) + h.dropped[count.DROP_QUEUE_FULL] == 136
    h.commit()
    h.check()
    assert not h.shelf.rows


def test_what_expires_in_the_tail_of_a_group_is_not_delivered() -> None:
    """[MQTT-3.3.2-5]"""
    h = paged()
    deep(h)
    send(h, 200, 201, 202, expires_at=h.now + 5)
    send(h, 203)
    h.commit()
    h.now += 5
    h.tidy()
    assert h.dropped == {count.DROP_EXPIRED: 3}
    h.check()
    send(h, 204, expires_at=h.now)
    client = member(h)
    h.commit()
    assert acknowledge(client) == [*range(200), 203]
    assert h.dropped == {count.DROP_EXPIRED: 4}
    h.commit()
    assert not h.shelf.rows
    h.check()


def test_a_group_whose_tail_expires_goes_on() -> None:
    """What comes next is not left waiting in an empty queue."""
    h = paged()
    client = member(h)
    h.commit()
    client.drop()
    send(h, *range(64))
    send(h, *range(64, 100), expires_at=h.now + 5)
    h.commit()
    client = member(h)
    h.write()
    assert acknowledge(client) == list(range(64))
    h.now += 5
    h.tidy()
    h.commit()
    send(h, 200)
    assert acknowledge(client) == [200]
    assert the_group(h).queue is None
    h.check()


def test_what_is_given_back_makes_room_when_it_has_expired() -> None:
    """[MQTT-3.3.2-5]"""
    h = paged(max_queued_messages=3)
    client = member(h)
    h.commit()
    send(h, 1, 2, 3, expires_at=h.now + 5)
    client.drop()
    h.now += 5
    send(h, 4, 5)
    assert h.dropped == {count.DROP_EXPIRED: 3}
    h.check()


def test_rows_of_a_group_that_are_lost_are_a_bug_and_it_goes_on() -> None:
    h = paged()
    deep(h)
    for serial in sorted(h.shelf.rows)[150:]:
        del h.shelf.rows[serial]
    client = member(h)
    h.commit()
    assert acknowledge(client) == list(range(150))
    assert h.dropped == {count.DROP_LOST: 50}
    assert h.broker.counters.bugs == 1
    send(h, 200)
    assert acknowledge(client) == [200]
    assert the_group(h).queue is None


def test_a_fault_in_the_page_of_a_group_is_counted() -> None:
    h = paged()
    deep(h)
    client = member(h, maximum=1)
    h.write()
    assert h.ask()
    broken: object = "no delivery"
    the_queue(h).head[0] = broken  # type: ignore[assignment]
    h.serve()
    assert h.broker.counters.bugs == 1
    assert not client.closed


# Whatever happens.


class Life:
    """Two members of a group that come and go."""

    def __init__(self, overflow: str, limit: int) -> None:
        self.h = paged(max_queued_messages=limit, queue_overflow=overflow)
        self.limit = limit
        self.clients: dict[str, FakeClient] = {}
        self.unacked: dict[str, list[Publish | Pubrel]] = {"a": [], "b": []}
        self.number = 0
        self.done: list[int] = []
        self.once: set[int] = set()  # QoS 2, begun

    def come(self, name: str, number: int) -> None:
        if name in self.clients:
            self.read(name)
        expiry = 0 if number == 0 else 1000
        client = member(self.h, name, 1 + number, qos=2, expiry=expiry)
        self.clients[name] = client
        self.unacked[name] = []

    def act(self, move: str, name: str, number: int) -> None:
        h = self.h
        client = self.clients.get(name)
        if move == "publish":
            self.number += 1
            expires_at = h.now + 3 if number == 7 else 0.0
            send(h, self.number, qos=1 + number % 2, expires_at=expires_at, size=HALF)
        elif move == "write":
            h.write()
        elif move == "ask":
            h.ask()
        elif move == "serve":
            h.most = 1 + number
            h.serve()
        elif move == "come":
            self.come(name, number)
        elif move == "tidy":
            h.tidy()
        elif move == "wait":
            h.advance(1.0)
        elif client is not None and not client.closed:
            if move == "drop":
                self.read(name)
                client.drop()
                del self.clients[name]
            elif move == "leave":
                client.send(Unsubscribe(9, [SHARED]))
            elif move == "acknowledge":
                self.acknowledge(name, 1 + number)
        for each in list(self.clients):
            self.read(each)

    def read(self, name: str) -> None:
        for packet in self.clients[name].recv():
            if isinstance(packet, Pubrel):
                self.unacked[name].append(packet)
            elif isinstance(packet, Publish):
                self.unacked[name].append(packet)
                if packet.qos == 2 and not packet.dup:
                    (number,) = names([packet])
                    assert number not in self.once  # [MQTT-4.8.2-4] [MQTT-4.8.2-5]
                    self.once.add(number)

    def acknowledge(self, name: str, at_most: int) -> None:
        client = self.clients[name]
        taken, self.unacked[name] = self.unacked[name][:at_most], self.unacked[name][at_most:]
        for packet in taken:
            if client.closed:
                return
            if isinstance(packet, Pubrel):
                client.send(Pubcomp(packet.packet_id))
            elif packet.qos == 1:
                self.done += names([packet])
                client.send(Puback(packet.packet_id))
            else:
                self.done += names([packet])
                client.send(Pubrec(packet.packet_id))

    def drain(self) -> None:
        self.h.most = 1000
        for _ in range(300):
            for name in ("a", "b"):
                if name not in self.clients or self.clients[name].closed:
                    self.come(name, 20)
                self.read(name)
                self.acknowledge(name, 1000)
            self.h.commit()
            if self.h.broker.balance() == (0, 0):
                return

    def check(self) -> None:
        self.h.check()
        for queue in self.h.broker.context.tails.values():
            assert not queue.closed
        for group in self.h.broker.context.queued_groups:
            found = queue_of(group)
            assert found is not None
            assert (found.tail > 0) <= (self.h.broker.context.tails.get(group.number) is found)


common = st.tuples(
    st.sampled_from(
        (
            *("publish", "publish", "publish", "publish", "write", "write", "ask", "serve"),
            *("acknowledge", "acknowledge", "drop", "come"),
        )
    ),
    st.sampled_from("ab"),
    st.integers(1, 6),
)
rare = st.tuples(
    st.sampled_from(("leave", "tidy", "wait", "come", "publish")),
    st.sampled_from("ab"),
    st.integers(0, 7),
)


@untimed
@given(st.lists(common, max_size=70))
def test_nothing_is_lost_or_done_twice_whatever_happens(moves: list[tuple[str, str, int]]) -> None:
    """[MQTT-4.8.2-1] Every message is acknowledged by one member, once."""
    life = Life(DROP_NEWEST, 0)
    life.come("a", 3)
    life.come("b", 5)
    life.h.commit()
    for move in moves:
        life.act(*move)
        life.check()
    life.drain()
    life.check()
    assert life.h.broker.balance() == (0, 0)
    assert set(life.done) == set(range(1, life.number + 1))
    assert life.h.broker.counters.delivered == life.number
    assert not life.h.shelf.rows
    assert not life.h.broker.context.tails


@untimed
@given(
    st.lists(st.one_of(common, common, common, rare), max_size=70),
    st.sampled_from((DROP_NEWEST, DROP_OLDEST)),
    st.sampled_from((3, 5, 8)),
)
def test_what_is_missing_was_counted_whatever_happens(
    moves: list[tuple[str, str, int]], overflow: str, limit: int
) -> None:
    life = Life(overflow, limit)
    life.come("a", 3)
    life.come("b", 0)
    life.h.commit()
    for move in moves:
        life.act(*move)
        life.check()
    life.drain()
    life.check()
    h = life.h
    h.commit()
    assert h.broker.balance() == (0, 0)
    assert not h.shelf.rows
    assert not h.broker.context.tails
    assert not h.broker.context.requests
    assert not h.broker.context.queued_groups
