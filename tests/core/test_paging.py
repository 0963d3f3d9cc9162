"""Deep queues of sessions: the head in memory, the rest in a store that is asked page by page."""

import gc
from collections import deque

import pytest

from mqttd.core import counters as count
from mqttd.core.inflight import Delivery
from mqttd.core.packets import Filter, Puback, Subscribe
from mqttd.core.queue import PAGE
from mqttd.core.settings import DROP_NEWEST, DROP_OLDEST
from tests.core.paging_kit import (
    HALF,
    absent,
    come,
    deep,
    names,
    paged,
    queue_of,
    send,
    subscribed,
)

# What takes memory.


def alive() -> int:
    gc.collect()
    return len([None for each in gc.get_objects() if isinstance(each, Delivery)])


def test_a_deep_queue_takes_no_more_memory_than_its_head() -> None:
    h = paged(max_queued_messages=0)
    session = absent(h)
    before = alive()
    for start in range(0, 100_000, 5000):
        send(h, *range(start, start + 5000))
        h.commit()
    assert len(queue_of(session)) == 100_000
    assert len(queue_of(session).head) <= 64
    assert alive() - before <= 64
    assert len(h.shelf.rows) == 100_000
    assert h.shelf.read == 0
    h.check()


def test_whoever_comes_gets_it_all_in_order_and_page_by_page() -> None:
    h = paged(max_queued_messages=0)
    session = deep(h, 5000)
    client = come(h, ack=False, maximum=10)
    h.commit()
    got = []
    while packets := client.messages():
        got += names(packets)
        for packet in packets:
            client.send(Puback(packet.packet_id))
        h.commit()
        if session.queue is not None:
            assert len(session.queue.head) <= PAGE + PAGE // 2
        h.check()
    assert got == list(range(5000))
    assert session.queue is None
    assert not h.broker.context.tails
    assert not h.shelf.rows


def test_a_head_may_be_full_of_bytes() -> None:
    h = paged()
    session = absent(h)
    send(h, *range(6), size=HALF)
    assert (len(queue_of(session).head), queue_of(session).tail) == (2, 4)
    h.commit()
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(6))
    h.check()


def test_a_client_that_does_not_read_is_paged_as_well() -> None:
    h = paged(max_queued_messages=0)
    client = subscribed(h)
    session = h.broker.sessions["c"]
    client.pause()
    send(h, *range(PAGE + 500))
    h.commit()
    assert (len(queue_of(session).head), queue_of(session).tail) == (PAGE, 500)
    assert h.shelf.read == 0
    client.resume()
    h.commit()
    assert names(client.messages()) == list(range(PAGE + 500))
    h.check()
    assert session.queue is None


def test_what_is_left_while_connack_waits_has_the_page_asked_for() -> None:
    h = paged()
    session = deep(h)
    client = come(h)
    assert not queue_of(session).wanting
    send(h, 200, 201)
    assert queue_of(session).wanting
    h.commit()
    assert names(client.messages()) == list(range(202))
    h.check()


def test_without_a_store_that_pages_everything_stays_in_memory() -> None:
    h = paged()
    h.broker.journal.paging = False
    session = absent(h)
    send(h, *range(200))
    assert (len(queue_of(session).head), queue_of(session).tail) == (200, 0)


def test_a_session_that_ends_with_its_connection_is_not_paged() -> None:
    h = paged()
    client = h.client("c", receive_maximum=1, auto_ack=False)
    client.subscribe("t", 1)
    send(h, *range(PAGE + 100))
    assert queue_of(h.broker.sessions["c"]).tail == 0
    client.drop()
    assert h.dropped == {count.DROP_SESSION_ENDED: PAGE + 100}
    h.commit()
    assert not h.shelf.rows
    h.check()


# The way of a page.


def test_a_page_is_read_behind_the_batch_that_holds_it() -> None:
    h = paged()
    session = absent(h)
    send(h, *range(100))
    client = come(h)
    assert not h.ask()  # CONNACK waits, nobody wants anything yet
    h.write()
    assert h.ask()
    send(h, 100)  # in the next batch
    assert h.serve()
    assert names(client.messages()) == list(range(100))
    assert queue_of(session).tail == 1
    assert queue_of(session).wanting
    assert not h.ask()
    h.write()
    assert h.ask()
    assert h.serve()
    assert names(client.messages()) == [100]
    assert session.queue is None
    h.check()


def test_acknowledgements_while_the_last_page_comes_lose_nothing() -> None:
    """[MQTT-4.6.0-5] the queue isn't over when its head is."""
    h = paged()
    session = deep(h, 100)
    client = come(h, ack=False)
    h.write()
    assert h.ask()
    first = client.messages()
    assert names(first) == list(range(64))
    for packet in first:
        client.send(Puback(packet.packet_id))
    send(h, 100)
    assert client.messages() == []
    assert len(queue_of(session)) == 37
    h.check()
    assert h.serve()
    assert names(client.messages()) == list(range(64, 100))
    h.commit()
    assert names(client.messages()) == [100]
    h.check()


@pytest.mark.parametrize("asked", [False, True])
def test_a_page_that_comes_when_the_client_has_gone_waits_for_the_next_one(asked: bool) -> None:
    h = paged()
    session = deep(h)
    client = come(h, maximum=3, ack=False)
    h.write()
    if asked:
        assert h.ask()
    client.drop()
    h.commit()
    assert len(queue_of(session).head) == 61 + 136
    send(h, 200)
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(201))  # the three again, as DUP
    h.check()


def test_a_page_that_comes_for_the_next_connection_is_its_own() -> None:
    """Take-over while a page is on its way: nothing is asked for twice."""
    h = paged()
    deep(h)
    client = come(h, maximum=3, ack=False)
    h.write()
    assert h.ask()
    again = come(h)
    h.write()
    assert not h.ask()
    h.commit()
    assert client.closed
    assert names(again.messages()) == list(range(200))
    h.check()


@pytest.mark.parametrize("way", ["clean", "expired"])
@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_page_of_a_session_that_has_ended_is_nobodys(way: str, asked: int) -> None:
    """`asked`: 1 wanted, 2 on its way when the session ends. [MQTT-3.1.2-4]"""
    h = paged()
    session = deep(h)
    old = come(h, maximum=3, ack=False) if asked else None
    if old is not None:
        h.write()
        if asked == 2:
            assert h.ask()
        if way == "expired":
            old.drop()
    if way == "expired":
        h.advance(1001.0)
        assert "c" not in h.broker.sessions
    client = come(h, clean=way == "clean")
    h.write()
    h.check()
    assert client.connection.established
    assert h.dropped == {count.DROP_SESSION_ENDED: 200}
    h.commit()
    h.check()
    assert session.queue is None
    assert client.messages() == []
    assert h.dropped == {count.DROP_SESSION_ENDED: 200}
    assert not h.broker.context.tails
    assert not h.broker.context.requests
    client.send(Subscribe(1, [Filter("t", 1)]))
    h.commit()  # what nobody will ask for goes with the next batch
    assert not h.shelf.rows


def test_pages_may_be_cut_short() -> None:
    h = paged()
    deep(h)
    h.most = 7
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(200))
    h.check()
    assert not h.shelf.rows


def test_rows_that_are_lost_are_a_bug_and_the_queue_goes_on() -> None:
    h = paged()
    session = deep(h)
    lost = sorted(h.shelf.rows)[100:]
    for serial in lost:
        del h.shelf.rows[serial]
    client = come(h)
    h.commit()
    send(h, 200)
    h.commit()
    assert names(client.messages()) == [*range(100), 200]
    assert h.broker.counters.bugs == 1
    assert h.events("bug") == ["a queue lost rows"]
    assert h.dropped == {count.DROP_LOST: 100}
    assert session.queue is None
    assert h.broker.balance() == (0, 0)


def test_a_page_that_is_empty_though_its_rows_are_durable_is_lost() -> None:
    h = paged()
    session = deep(h)
    client = come(h)
    h.write()
    assert h.ask()
    assert names(client.messages()) == list(range(64))
    h.broker.paged(h.pending.pop(), [], h.now)
    assert h.dropped == {count.DROP_LOST: 136}
    assert session.queue is None
    send(h, 200)
    assert names(client.messages()) == [200]


def test_a_fault_in_a_page_costs_its_connection_and_no_other() -> None:
    h = paged()
    session = deep(h, 100)
    client, other = come(h), h.client("other")
    h.write()
    assert h.ask()
    broken: object = "no delivery"
    queue_of(session).head = deque([broken])  # type: ignore[list-item]
    h.serve()
    assert client.closed
    assert not other.closed
    assert h.broker.counters.bugs == 1
    # Without a connection there is nothing to close.
    h.broker._contain(None, h.now)
    assert h.broker.counters.bugs == 2


# Bounds.


def test_head_and_tail_count_as_one_queue() -> None:
    h = paged(max_queued_messages=100, queue_overflow=DROP_NEWEST)
    session = absent(h)
    send(h, *range(150))
    assert len(queue_of(session)) == 100
    assert h.dropped == {count.DROP_QUEUE_FULL: 50}
    h.commit()
    assert len(h.shelf.rows) == 100
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(100))
    h.check()


@pytest.mark.parametrize("together", [False, True])
def test_the_oldest_goes_from_the_head_and_then_from_the_tail(together: bool) -> None:
    h = paged(max_queued_messages=100, queue_overflow=DROP_OLDEST)
    session = absent(h)
    for name in range(350):
        send(h, name)
        if not together:
            h.commit()
    assert len(queue_of(session)) == 100
    assert h.dropped == {count.DROP_QUEUE_FULL: 250}
    h.commit()
    assert len(h.shelf.rows) == 100
    h.check()
    client = come(h)
    h.commit()
    assert names(client.messages()) == list(range(250, 350))
    assert not h.shelf.rows
    h.check()


@pytest.mark.parametrize("overflow", [DROP_NEWEST, DROP_OLDEST])
def test_what_is_on_its_way_counts_as_well(overflow: str) -> None:
    h = paged(max_queued_messages=100, queue_overflow=overflow)
    session = absent(h)
    send(h, *range(100))
    h.commit()
    client = come(h, maximum=10, ack=False)
    h.write()
    assert h.ask()
    send(h, *range(100, 120))  # room for ten
    h.check()
    assert len(queue_of(session)) == 100
    assert h.dropped == {count.DROP_QUEUE_FULL: 10}
    h.serve()
    client.drop()
    client = come(h)
    h.commit()
    left = list(range(110)) if overflow == DROP_NEWEST else [*range(10), *range(20, 120)]
    assert names(client.messages()) == left
    h.check()
    assert not h.shelf.rows


def test_a_queue_that_is_all_on_its_way_has_nothing_older_to_drop() -> None:
    h = paged(max_queued_messages=100, queue_overflow=DROP_OLDEST)
    session = absent(h)
    send(h, *range(100))
    h.commit()
    client = come(h)
    h.write()
    assert h.ask()
    assert names(client.messages()) == list(range(64))
    send(h, *range(100, 200))
    assert len(queue_of(session)) <= 101
    h.commit()
    got = names(client.messages())
    assert got == sorted(set(got))
    assert len(got) + h.dropped.get(count.DROP_QUEUE_FULL, 0) == 136
    h.check()
    assert not h.shelf.rows
