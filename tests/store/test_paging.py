"""Deep queues: a bounded head in memory, the rest in the file, and back in pages."""

import contextlib
from pathlib import Path

import pytest

from mqttd.core.letters import Letters
from mqttd.core.packets import Connack, Connect, Puback, Will
from mqttd.core.properties import Properties
from mqttd.core.queue import PAGE, PAGE_BYTES, Queue
from mqttd.core.session import PageRequest
from mqttd.core.settings import DROP_OLDEST, Settings
from mqttd.store import sqlite
from tests.store.disk import (
    EMPTY,
    Disk,
    Receiver,
    assert_sound,
    away,
    fill,
    number_of,
    payloads,
    rows_in,
    state_of,
    subscribe,
)
from tests.store.tails import (
    HEAD,
    arrive,
    group_of,
    in_memory,
    queue_of,
    step,
    tidy,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "mqttd.db"


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What crashes here is the process: the disk needn't be waited for."""
    monkeypatch.setitem(sqlite.LEVELS, "full", "NORMAL")


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping in small slices, so that a test needs few rows for many of them."""
    monkeypatch.setattr(sqlite, "_SLICE_ROWS", 100)
    monkeypatch.setattr(sqlite, "_SLICE_PAGES", 32)
    monkeypatch.setattr(sqlite, "_FREE_PAGES", 128)


# What comes back.


def test_a_deep_queue_survives_and_only_its_head_is_in_memory(path: Path) -> None:
    numbers = list(range(3000))
    with Disk(path) as disk:
        away(disk, "away", "deep/1")
        fill(disk, "deep/1", numbers)
        queue = queue_of(disk, "away")
        assert (len(queue.head), queue.tail) == (HEAD, 3000 - HEAD)
        assert disk.broker.balance() == (3000, 0)
        assert in_memory("deep/1") == HEAD
        with disk.crash() as other:
            assert state_of(other) == state_of(disk)
            reader = Receiver("away").connect(other)
            assert reader.drain(other) == numbers
            assert other.broker.balance() == (0, 0)
            assert other.broker.counters.matched == other.broker.counters.delivered == 3000
            assert rows_in(other) == EMPTY
            assert not other.broker.context.tails
        assert Receiver("away").connect(disk).drain(disk) == numbers
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_start_reads_no_message_of_a_queue(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "one", "deep/2")
        away(disk, "two", "deep/2")
        away(disk, "member", "$share/g/deep/2")
        away(disk, "none", "other")
        fill(disk, "deep/2", range(200))
    with Disk(path) as disk:
        assert in_memory("deep/2") == 0
        one, two = queue_of(disk, "one"), queue_of(disk, "two")
        group = group_of(disk)
        assert disk.broker.sessions["none"].queue is None
        assert disk.broker.context.tails == {
            one.number: one,
            two.number: two,
            group.number: group.queue,
        }
        assert [(len(each.head), each.tail) for each in (one, two)] == [(0, 200)] * 2
        assert disk.broker.balance() == (600, 0)


def test_a_slow_reader_gets_a_page_when_its_head_runs_low(path: Path) -> None:
    """Present, the head is longer; no page is wanted before half of it has gone."""
    numbers = list(range(2 * PAGE + 500))
    with Disk(path) as disk:
        reader = Receiver("slow").connect(disk, receive_maximum=1)
        assert reader.client is not None
        subscribe(disk, reader.client, "a")
        fill(disk, "a", numbers)
        queue = queue_of(disk, "slow")
        assert len(queue.head) == PAGE
        assert queue.tail == len(numbers) - PAGE - 1
        longest = 0
        while reader.work(1):
            if queue.low() or not reader.client.received:
                disk.commit()
            longest = max(longest, len(queue.head))
        assert reader.got == numbers
        assert longest < 2 * PAGE
        assert rows_in(disk) == EMPTY


def test_what_comes_while_a_tail_waits_stands_behind_it(path: Path) -> None:
    # [MQTT-4.6.0-5]
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(100))
        reader = Receiver("away").connect(disk, receive_maximum=10)
        number = 100
        while reader.work(10):
            if number < 200:
                fill(disk, "a", range(number, number + 10))
                number += 10
            disk.commit()
        assert reader.got == list(range(200))
        assert rows_in(disk) == EMPTY


def test_a_payload_shared_by_deep_queues_goes_with_the_last_of_them(path: Path) -> None:
    numbers = list(range(1500))
    with Disk(path) as disk:
        for name in "xyz":
            away(disk, name, "a")
        away(disk, "member", "$share/g/a")
        fill(disk, "a", numbers)
        assert rows_in(disk) == {"deliveries": 6000, "messages": 1500, "refs": 1500}
        assert_sound(disk)
        with disk.crash() as other:
            assert other.broker.balance() == (6000, 0)
            for left, name in zip((3, 2, 1, 0), ("x", "member", "y", "z"), strict=True):
                reader = Receiver(name).connect(other)
                assert reader.drain(other) == numbers
                reader.drop()
                other.commit()
                assert rows_in(other, "deliveries", "messages") == {
                    "deliveries": 1500 * left,
                    "messages": 1500 * (left > 0),
                }
                assert_sound(other)
            assert rows_in(other) == EMPTY
            assert other.broker.balance() == (0, 0)


def test_a_deep_queue_of_a_group_is_divided_among_its_members(path: Path) -> None:
    numbers = list(range(2500))
    with Disk(path) as disk:
        for name in ("one", "two"):
            away(disk, name, "$share/g/a", qos=2)
        fill(disk, "a", numbers, qos=2)
        group = group_of(disk)
        assert isinstance(group.queue, Queue)
        assert (len(group.queue.head), group.queue.tail) == (HEAD, 2500 - HEAD)
        with disk.crash() as other:
            members = [Receiver(name).connect(other, receive_maximum=50) for name in ("one", "two")]
            while members[0].work(50) + members[1].work(50):
                other.commit()
            assert sorted(members[0].got + members[1].got) == numbers
            assert all(member.got == sorted(member.got) for member in members)
            assert min(len(member.got) for member in members) > 500
            assert other.broker.balance() == (0, 0)
            assert not other.broker.context.queued_groups
            assert rows_in(other) == EMPTY


@pytest.mark.parametrize(
    ("topic_filter", "qos"),
    [
        ("a", 1),
        ("a", 2),
        ("$share/g/a", 1),
        ("$share/g/a", 2),
    ],
)
def test_crashes_in_the_middle_of_a_drain(path: Path, topic_filter: str, qos: int) -> None:
    """Nothing is lost, whatever the crash undid; QoS 2 comes once, and all of it in order."""
    numbers = list(range(600))
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(Disk(path))
        away(disk, "away", topic_filter, qos=qos)
        fill(disk, "a", numbers, qos=qos)
        reader = Receiver("away")
        for step in (0, 1, 40, 64, 150, 33):
            reader.connect(disk, receive_maximum=50)
            while step > 0:
                step -= reader.work(min(step, 20))
                disk.commit()
            reader.work(15)  # answered, and the broker dies before that is in the file
            disk = stack.enter_context(disk.crash())
            assert sum(disk.broker.balance()) >= 600 - len(reader.got)
            assert_sound(disk)
        reader.connect(disk, receive_maximum=50).drain(disk)
        assert list(dict.fromkeys(reader.got)) == numbers
        if qos == 2:
            assert reader.got == numbers
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_crash_in_the_middle_of_filling(path: Path) -> None:
    """What was acknowledged is there, what wasn't may be missing, and there is no gap."""
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(150))
        source = disk.client("source")
        for number in range(150, 200):
            source.publish("a", b"%d" % number, qos=1)
        with disk.crash() as other:
            fill(other, "a", range(200, 300))
            expected = [*range(150), *range(200, 300)]
            assert Receiver("away").connect(other).drain(other) == expected
            assert rows_in(other) == EMPTY


def test_qos_0_waits_in_a_tail_as_well(path: Path) -> None:
    settings = Settings()
    settings.queue_qos0 = True
    with Disk(path, settings=settings) as disk:
        away(disk, "away", "a")
        for number in range(300):
            fill(disk, "a", [number], qos=number % 2)
        disk.commit()
        assert queue_of(disk, "away").tail == 300 - HEAD
        with disk.crash() as other:
            assert other.broker.balance() == (300, 0)
            assert Receiver("away").connect(other).drain(other) == list(range(300))
            assert other.broker.balance() == (0, 0)
            assert rows_in(other) == EMPTY
            assert_sound(other)


def test_a_session_that_will_not_last_leaves_a_tail_all_the_same(path: Path) -> None:
    """Resumed by a CONNECT without expiry: what still comes stands behind the tail."""
    with Disk(path) as disk:
        away(disk, "c", "a")
        fill(disk, "a", range(100))
        client = disk.client("c", clean=False, expiry=0, receive_maximum=1, auto_ack=False)
        disk.commit()
        fill(disk, "a", range(100, 150))
        assert disk.broker.balance() == (149, 1)
        got: list[int] = []
        while messages := client.messages():
            got += [number_of(each.payload) for each in messages]
            for each in messages:
                client.send(Puback(each.packet_id))
            disk.commit()
        assert got == list(range(150))
        client.drop()
        disk.commit()
        tidy(disk)
        assert rows_in(disk) == EMPTY


# Bounds.


def test_the_head_of_somebody_away_is_bounded_in_bytes(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(10), size=40_000)
        assert len(queue_of(disk, "away").head) == 2  # 64 KiB and the one that crosses it
        assert Receiver("away").connect(disk).drain(disk) == list(range(10))


def test_a_page_is_bounded_in_bytes(path: Path) -> None:
    size = 500_000
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(20), size=size)
        session = disk.broker.sessions["away"]
        queue = queue_of(disk, "away")
        assert queue.tail == 19
        request = PageRequest(queue, session, None)
        request.serials = list(queue.chunks[0])
        (page,) = disk.read([request])
        assert PAGE_BYTES <= sum(len(each.message.payload) for each in page) < PAGE_BYTES + size
        assert [number_of(each.message.payload) for each in page] == list(range(1, 1 + len(page)))
        with disk.crash() as other:
            assert Receiver("away").connect(other).drain(other) == list(range(20))
            assert rows_in(other) == EMPTY


def test_the_head_of_a_slow_reader_is_bounded_in_bytes(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(40), size=500_000)
        with disk.crash() as other:
            reader = Receiver("away").connect(other, receive_maximum=1)
            other.commit()
            head = queue_of(other, "away").head
            assert sum(len(each.message.payload) for each in head) <= 2 * PAGE_BYTES
            assert reader.drain(other) == list(range(40))


def test_a_full_queue_refuses_the_newest(path: Path) -> None:
    settings = Settings()
    settings.max_queued_messages = 100
    with Disk(path, settings=settings) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(130))
        assert disk.dropped == {"queue_full": 30}
        with disk.crash() as other:
            fill(other, "a", range(130, 150))
            assert other.dropped == {"queue_full": 20}
            assert Receiver("away").connect(other).drain(other) == list(range(100))
            assert rows_in(other) == EMPTY


@pytest.mark.parametrize("topic_filter", ["a", "$share/g/a"])
def test_a_full_queue_drops_the_oldest(path: Path, topic_filter: str) -> None:
    """First out of the head; when that is empty, out of the tail, where only the store can."""
    settings = Settings()
    settings.max_queued_messages = 100
    settings.queue_overflow = DROP_OLDEST
    with Disk(path, settings=settings) as disk:
        away(disk, "away", topic_filter)
        fill(disk, "a", range(250))
        assert disk.broker.balance() == (100, 0)
        assert disk.dropped == {"queue_full": 150}
        assert rows_in(disk, "deliveries", "messages") == {"deliveries": 100, "messages": 100}
        with disk.crash() as other:
            assert other.broker.balance() == (100, 0)
            fill(other, "a", range(250, 280))
            assert other.broker.balance() == (100, 0)
            assert other.dropped == {"queue_full": 30}
            assert Receiver("away").connect(other).drain(other) == list(range(180, 280))
            assert rows_in(other) == EMPTY
        assert Receiver("away").connect(disk).drain(disk) == list(range(150, 250))
        assert rows_in(disk) == EMPTY


def test_drops_of_the_oldest_behind_a_page_that_is_on_its_way(path: Path) -> None:
    settings = Settings()
    settings.max_queued_messages = 100
    settings.queue_overflow = DROP_OLDEST
    with Disk(path, settings=settings) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(100))
    with Disk(path, settings=settings) as disk:
        reader = Receiver("away")
        reader.client = arrive(disk, "away")
        queue = queue_of(disk, "away")
        requests = disk.broker.take_requests()
        assert (queue.coming, queue.tail) == (100, 0)
        source = disk.client("source")
        for number in range(100, 110):
            source.publish("a", b"%d" % number, qos=1)
        assert (queue.coming, queue.tail) == (100, 1)  # of those ten one at a time had room
        disk.serve(requests)
        assert reader.drain(disk) == [*range(100), 109]
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


# A page on its way.


@pytest.mark.parametrize("topic_filter", ["a", "$share/g/a"])
def test_acknowledgements_while_the_last_page_is_on_its_way(path: Path, topic_filter: str) -> None:
    with Disk(path) as disk:
        away(disk, "away", topic_filter, "window")
        fill(disk, "window", range(5))
        reader = Receiver("away").connect(disk, receive_maximum=5)
        reader.drop()
        fill(disk, "a", range(5, 105))
        with disk.crash() as other:
            assert other.broker.balance() == (100, 5)
            reader.client = arrive(other, "away")
            requests = other.broker.take_requests()
            assert [len(each.serials) for each in requests] == [100]
            assert reader.work() == 5
            step(other)
            other.client("source").publish("a", b"105", qos=1)
            other.serve(requests)
            assert reader.drain(other) == list(range(106))
            assert other.broker.balance() == (0, 0)
            assert rows_in(other) == EMPTY


def test_a_client_that_leaves_and_comes_back_while_a_page_is_on_its_way(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(100))
    with Disk(path) as disk:
        reader = Receiver("away")
        reader.client = arrive(disk, "away")
        requests = disk.broker.take_requests()
        reader.drop()
        reader.client = arrive(disk, "away")
        fill(disk, "a", range(100, 110))
        disk.serve(requests)
        assert reader.drain(disk) == list(range(110))
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_page_waits_for_what_is_not_in_the_file_yet(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        source = disk.client("source")
        for number in range(100):
            source.publish("a", b"%d" % number, qos=1)
        client = disk.open()
        client.auto_ack = False
        properties = Properties()
        properties.session_expiry_interval = 3600
        batch = disk.broker.take_batch()
        assert batch is not None
        client.send(Connect("MQTT", 5, False, 0, "away", None, None, None, properties))
        queue = queue_of(disk, "away")
        disk.broker.context.want_page(queue, disk.broker.sessions["away"], None)
        assert disk.broker.take_requests() == []
        assert queue.wanting
        disk.write(batch)
        disk.broker.committed(batch.seq, disk.now)
        requests = disk.broker.take_requests()
        assert [len(each.serials) for each in requests] == [100 - HEAD]
        reader = Receiver("away")
        reader.client = client
        disk.serve(requests)
        disk.commit()
        client.expect(Connack)
        assert reader.drain(disk) == list(range(100))
        assert rows_in(disk) == EMPTY


# Groups, and what goes back to them.


def test_what_came_in_a_page_goes_back_to_its_group(path: Path) -> None:
    # [MQTT-4.8.2-4]
    with Disk(path) as disk:
        away(disk, "lasting", "$share/g/a")
        fill(disk, "a", range(100))
    with Disk(path) as disk:
        brief = disk.client("brief", expiry=0, auto_ack=False)
        subscribe(disk, brief, "$share/g/a")
        disk.commit()
        assert len(payloads(brief)) == 100
        brief.drop()
        assert disk.dropped == {}
        disk.commit()
        with disk.crash() as other:
            assert Receiver("lasting").connect(other).drain(other) == list(range(100))
        assert Receiver("lasting").connect(disk).drain(disk) == list(range(100))
        assert rows_in(disk) == EMPTY


@pytest.mark.parametrize("others", [0, 1])
def test_what_a_member_that_does_not_last_gives_back(path: Path, others: int) -> None:
    with Disk(path) as disk:
        away(disk, "lasting", "$share/g/a")
        for number in range(others):
            away(disk, f"other{number}", "a")
        fill(disk, "a", range(3))
        brief = disk.client("brief", expiry=0, auto_ack=False)
        subscribe(disk, brief, "$share/g/a")
        disk.commit()
        assert payloads(brief) == [b"0", b"1", b"2"]
        brief.drop()
        disk.commit()
        with disk.crash() as other:
            assert Receiver("lasting").connect(other).drain(other) == [0, 1, 2]
            assert_sound(other)


def test_what_was_given_back_at_a_start_comes_once(path: Path) -> None:
    # [MQTT-4.8.2-4]
    with Disk(path) as disk:
        member = Receiver("m").connect(disk, receive_maximum=3)
        assert member.client is not None
        subscribe(disk, member.client, "$share/g/a")
        fill(disk, "a", range(200))
        with disk.crash() as other:
            assert other.broker.balance() == (200, 0)
            other.commit()
            member.connect(other, receive_maximum=1)
            assert member.drain(other) == list(range(200))
            assert other.broker.balance() == (0, 0)
            assert rows_in(other) == EMPTY


def test_what_was_given_back_before_a_deep_tail_stays_in_front(path: Path) -> None:
    # [MQTT-4.8.2-4]
    with Disk(path) as disk:
        member = Receiver("m").connect(disk, receive_maximum=100)
        assert member.client is not None
        subscribe(disk, member.client, "$share/g/a")
        fill(disk, "a", range(100))
        member.drop()
        fill(disk, "a", range(100, 300))
        group = group_of(disk)
        assert isinstance(group.queue, Queue)
        assert group.queue.tail == 200
        with disk.crash() as other:
            assert member.connect(other, receive_maximum=1).drain(other) == list(range(300))
            assert rows_in(other) == EMPTY


def test_a_head_full_of_what_was_given_back(path: Path) -> None:
    with Disk(path) as disk:
        member = Receiver("m").connect(disk, receive_maximum=100)
        assert member.client is not None
        subscribe(disk, member.client, "$share/g/a")
        fill(disk, "a", range(100))
        member.drop()
        fill(disk, "a", range(100, 300))
        assert member.connect(disk, receive_maximum=1).drain(disk) == list(range(300))
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_queue_that_begins_with_the_start_pages(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "heir", "w")
        disk.client("c", expiry=3600, will=Will("w", b"0", 1, False, 30)).drop()
        disk.commit()
        with disk.crash(away=60.0) as other:
            fill(other, "w", range(1, 200))
            assert len(queue_of(other, "heir").head) == HEAD
            assert Receiver("heir").connect(other).drain(other) == list(range(200))


def test_what_ends_in_a_deep_queue_is_read_for_its_dead_letter(path: Path) -> None:
    """By expiry while its client is away, and with the session."""
    with Disk(path) as disk:
        letters = disk.broker.context.letters = Letters(frozenset({"expired", "session_ended"}))
        buried: list[tuple[str, int]] = []
        disk.broker.hooks.undelivered = lambda letter: buried.append(
            (letter.reason, number_of(letter.message.payload))
        )
        away(disk, "away", "a", expiry=1000)
        fill(disk, "a", range(100))
        fill(disk, "a", range(100, 150), expiry=5)
        disk.advance(10)
        while disk.tidy():
            pass
        disk.commit()
        assert buried == [("expired", number) for number in range(100, 150)]
        assert rows_in(disk)["messages"] == 100
        buried.clear()
        disk.advance(1000)
        disk.commit()
        assert sorted(buried) == [("session_ended", number) for number in range(100)]
        assert rows_in(disk) == EMPTY
        assert (letters.unread, disk.broker.balance()) == (0, (0, 0))
        assert_sound(disk)
