"""What becomes of the tails of deep queues that ended or expired, and of the room they took."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqttd.core.packets import Connack, Connect
from mqttd.core.properties import Properties
from mqttd.core.settings import Settings
from mqttd.store import sqlite
from tests.store.disk import (
    EMPTY,
    Disk,
    Receiver,
    assert_sound,
    away,
    fill,
    rows_in,
    subscribe,
)
from tests.store.tails import (
    HEAD,
    arrive,
    ended,
    hear,
    look,
    queue_of,
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


# What ended.


@pytest.mark.usefixtures("slices")
def test_the_tail_of_an_ended_session_goes_in_slices(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "brief", "a", expiry=100)
        away(disk, "other", "a")
        fill(disk, "a", range(350))
        disk.advance(200.0)
        assert "brief" not in disk.broker.sessions
        disk.commit()
        assert disk.dropped == {"session_ended": 350}
        # The head went with the session, the tail is garbage.
        assert rows_in(disk, "deliveries") == {"deliveries": 700 - HEAD}
        assert ended(disk) == 350 - HEAD
        assert_sound(disk)
        left = 700 - HEAD
        while disk.tidy():
            now = rows_in(disk, "deliveries")["deliveries"]
            assert 0 <= left - now <= sqlite._SLICE_ROWS
            left = now
        # What the other session waits for stays.
        assert rows_in(disk) == {"deliveries": 350, "messages": 350, "refs": 350}
        assert_sound(disk)
        assert Receiver("other").connect(disk).drain(disk) == list(range(350))
        assert rows_in(disk) == EMPTY


@pytest.mark.usefixtures("slices")
def test_garbage_outlives_crashes(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(Disk(path))
        away(disk, "c", "a")
        away(disk, "other", "a")
        fill(disk, "a", range(350))
        disk.client("c", expiry=0).disconnect()  # a clean start
        disk.commit()
        for turn in range(3):
            disk = stack.enter_context(disk.crash())
            assert disk.broker.balance() == (350, 0)
            disk.tidy()
            left = 350 + max(0, 350 - HEAD - 100 * (turn + 1))
            assert rows_in(disk, "deliveries") == {"deliveries": left}
            assert_sound(disk)
        disk = stack.enter_context(disk.crash())
        tidy(disk)
        assert ended(disk) == 0
        assert Receiver("other").connect(disk).drain(disk) == list(range(350))
        assert rows_in(disk) == EMPTY


def test_a_session_that_ends_while_the_broker_is_away_leaves_garbage(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "brief", "a", expiry=100)
        away(disk, "member", "$share/g/a", expiry=100)
        fill(disk, "a", range(200))
        with disk.crash(away=500.0) as other:
            assert not other.broker.sessions
            assert other.broker.balance() == (0, 0)
            assert other.dropped == {"session_ended": 400}
            other.commit()
            assert ended(other) == 400
            assert rows_in(other, "shares") == {"shares": 0}
            tidy(other)
            assert rows_in(other) == EMPTY


def test_a_new_session_under_a_name_whose_garbage_waits(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "c", "a")
        fill(disk, "a", range(200))
        disk.client("c", expiry=3600).disconnect()  # a clean start
        away(disk, "c", "a")
        fill(disk, "a", range(1000, 1200))
        assert disk.broker.balance() == (200, 0)
        assert ended(disk) == 200 - HEAD
        with disk.crash() as other:
            assert other.broker.balance() == (200, 0)
            reader = Receiver("c").connect(other, receive_maximum=1)
            reader.work(1)
            tidy(other)
            assert reader.drain(other) == list(range(1000, 1200))
            assert rows_in(other) == EMPTY
        with disk.crash() as other:
            tidy(other)
            assert Receiver("c").connect(other).drain(other) == list(range(1000, 1200))
            assert rows_in(other) == EMPTY


def test_a_group_whose_last_member_leaves_is_garbage(path: Path) -> None:
    with Disk(path) as disk:
        member = Receiver("m").connect(disk)
        assert member.client is not None
        subscribe(disk, member.client, "$share/g/a")
        member.drop()
        fill(disk, "a", range(200))
        member.connect(disk, receive_maximum=1)
        assert member.client is not None
        disk.broker.unsubscribe(disk.broker.sessions["m"], "$share/g/a")
        disk.commit()
        assert rows_in(disk, "shares") == {"shares": 0}
        tidy(disk)
        assert member.drain(disk) == [0]  # what it had begun is its own
        assert rows_in(disk) == EMPTY
        subscribe(disk, member.client, "$share/g/a")
        member.drop()
        fill(disk, "a", range(5))
        assert disk.rows("SELECT name, filter FROM shares") == [("g", "a")]
        with disk.crash() as other:
            assert Receiver("m").connect(other).drain(other) == list(range(5))


def test_a_session_that_ends_while_a_page_is_on_its_way(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "c", "a")
        fill(disk, "a", range(200))
    with Disk(path) as disk:
        client = arrive(disk, "c", expiry=0)
        requests = disk.broker.take_requests()
        assert [len(each.serials) for each in requests] == [200]
        client.drop()
        disk.serve(requests)
        assert disk.broker.balance() == (0, 0)
        assert disk.dropped == {"session_ended": 200}
        assert disk.broker.counters.bugs == 0
        disk.commit()
        tidy(disk)
        assert rows_in(disk) == EMPTY


def test_deliveries_that_are_nobodys_are_garbage(path: Path) -> None:
    """Not left by this version, but by a hand in the file."""
    with Disk(path) as disk:
        away(disk, "c", "a")
        away(disk, "member", "$share/g/a")
        fill(disk, "a", range(100))
        Receiver("c").connect(disk, receive_maximum=3)  # three of them are in its window
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in ("sessions", "subscriptions", "shares"):
            db.execute(f"DELETE FROM {table}")
    with Disk(path) as disk:
        assert disk.broker.balance() == (0, 0)
        assert ended(disk) == 200
        away(disk, "c", "a")
        fill(disk, "a", range(5))
        tidy(disk)
        assert rows_in(disk) == {"deliveries": 5, "messages": 5, "refs": 0}
        assert Receiver("c").connect(disk).drain(disk) == list(range(5))


def test_garbage_waits_for_the_batch_that_ends_its_owner(path: Path) -> None:
    """Where the journal keeps the latest back, that needn't be the batch that is taken next."""
    with Disk(path) as disk:
        away(disk, "c", "a")
        away(disk, "other", "b")
        fill(disk, "a", range(200))
        disk.broker.journal.patient = True
        disk.client("source").publish("b", b"0", qos=1)
        assert disk.broker.take_batch(True) is None  # it is kept back
        client = disk.open()
        client.send(Connect("MQTT", 5, True, 0, "c", None, None, None, Properties()))
        batch = disk.broker.take_batch(True)
        assert batch is not None
        disk.write(batch)
        disk.broker.committed(batch.seq, disk.now)
        disk.flush()
        look(disk)
        with disk.crash() as other:
            if "c" in other.broker.sessions:  # then with all that it had
                assert Receiver("c").connect(other).drain(other) == list(range(200))
        disk.commit()
        assert not client.expect(Connack).session_present
        tidy(disk)
        assert rows_in(disk) == {"deliveries": 1, "messages": 1, "refs": 0}


def test_numbers_are_never_those_of_garbage(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "c", "a")
        number = disk.broker.sessions["c"].number
        fill(disk, "a", range(100))
        disk.client("c", expiry=0).disconnect()
        disk.commit()
        with disk.crash() as other:
            away(other, "new", "b")
            assert other.broker.sessions["new"].number > number


# What expired.


@pytest.mark.usefixtures("slices")
def test_expired_messages_in_tails_are_swept(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        away(disk, "member", "$share/g/a")
        fill(disk, "a", range(300), expiry=100)
        fill(disk, "a", range(300, 400))
        disk.advance(200.0)
        assert tidy(disk) > 2  # a sweep in slices
        # The head is seen to when its turn comes.
        assert disk.dropped == {"expired": 2 * (300 - HEAD)}
        assert disk.broker.balance() == (2 * (100 + HEAD), 0)
        assert rows_in(disk, "deliveries") == {"deliveries": 2 * (100 + HEAD)}
        assert_sound(disk)
        for name in ("away", "member"):
            assert Receiver(name).connect(disk).drain(disk) == list(range(300, 400))
        assert disk.dropped == {"expired": 2 * 300}
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_tail_of_which_everything_expired(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(300), expiry=100)
    with Disk(path, wall=1_700_001_000.0) as disk:
        queue = queue_of(disk, "away")
        tidy(disk)
        assert (len(queue), queue.tail) == (0, 0)
        assert not disk.broker.context.tails
        assert disk.dropped == {"expired": 300}
        assert rows_in(disk) == EMPTY
        fill(disk, "a", range(5))
        assert Receiver("away").connect(disk).drain(disk) == list(range(5))
        assert disk.broker.sessions["away"].queue is None


def test_a_sweep_leaves_a_page_on_its_way_alone(path: Path) -> None:
    """What the page brings is found expired when it comes, and counted then."""
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(200), expiry=100)
        fill(disk, "a", range(200, 300))
        disk.advance(200.0)
        reader = Receiver("away")
        reader.client = arrive(disk, "away")
        requests = disk.broker.take_requests()
        assert len(requests) == 1
        found = look(disk)
        assert len(found.expired) == 200
        hear(disk, found)
        assert disk.dropped == {"expired": HEAD}
        disk.serve(requests)
        assert reader.drain(disk) == list(range(200, 300))
        assert disk.dropped == {"expired": 200}
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_page_that_overtakes_what_a_sweep_found(path: Path) -> None:
    """The sweep looked, the page came, and only then the core hears of the sweep."""
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(200), expiry=100)
        fill(disk, "a", range(200, 300))
        disk.advance(200.0)
        found = look(disk)
        reader = Receiver("away").connect(disk)
        hear(disk, found)
        assert reader.drain(disk) == list(range(200, 300))
        assert disk.dropped == {"expired": 200}
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_there_is_a_sweep_only_where_something_expired_and_not_all_the_time(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(100), expiry=1000)
        fill(disk, "a", range(100, 200), expiry=5000)
        tidy(disk)
        assert disk.store._sweep_at == 0.0
        disk.advance(1100.0)
        tidy(disk)
        assert disk.dropped == {"expired": 100 - HEAD}
        swept_again_at = disk.store._sweep_at
        assert swept_again_at > disk.now
        tidy(disk)  # the head's are still there, but it isn't time
        assert disk.store._sweep_at == swept_again_at


def test_a_full_queue_makes_room_of_what_expired(path: Path) -> None:
    settings = Settings()
    settings.max_queued_messages = 100
    with Disk(path, settings=settings) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(100), expiry=100)
        disk.advance(200.0)
        fill(disk, "a", range(100, 110))
        assert disk.dropped == {"expired": HEAD}
        tidy(disk)
        assert disk.dropped == {"expired": 100}
        assert Receiver("away").connect(disk).drain(disk) == list(range(100, 110))


def test_a_full_head_that_came_in_a_page_makes_room_of_what_expired(path: Path) -> None:
    settings = Settings()
    settings.max_queued_messages = 10
    with Disk(path, settings=settings) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(10), expiry=50)
        with disk.crash() as other:
            Receiver("away").connect(other, receive_maximum=1).drop()
            fill(other, "a", [10])
            other.advance(100.0)
            other.commit()
            fill(other, "a", [11])
            assert other.dropped == {"expired": 9}


def test_a_sweep_leaves_a_restored_window_alone(path: Path) -> None:
    # [MQTT-4.4.0-1] what was begun is sent again, expired or not
    with Disk(path) as disk:
        reader = Receiver("c").connect(disk, receive_maximum=5)
        assert reader.client is not None
        subscribe(disk, reader.client, "a")
        fill(disk, "a", range(5), expiry=10)
        fill(disk, "a", range(5, 200))
        with disk.crash(away=100.0) as other:
            assert other.broker.balance() == (195, 5)
            tidy(other)
            assert other.broker.balance() == (195, 5)
            assert Receiver("c").connect(other).drain(other) == list(range(200))
            assert other.broker.balance() == (0, 0)
            assert rows_in(other) == EMPTY


def test_a_second_sweep_before_the_first_is_in_the_file(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(150))
        fill(disk, "a", range(150, 200), expiry=10)
        disk.advance(20.0)
        hear(disk, look(disk))
        disk.advance(61.0)
        hear(disk, look(disk))
        disk.commit()
        assert disk.dropped == {"expired": 50}
        assert Receiver("away").connect(disk).drain(disk) == list(range(150))
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


def test_a_page_with_what_a_sweep_found_before_that_is_in_the_file(path: Path) -> None:
    """As it happens with a full disk: pages are read, and nothing is written."""
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(150))
        fill(disk, "a", range(150, 200), expiry=10)
        disk.advance(20.0)
        hear(disk, look(disk))
        reader = Receiver("away")
        reader.client = arrive(disk, "away")
        requests = disk.broker.take_requests()
        disk.serve(requests)
        fill(disk, "a", range(200, 210))
        assert reader.drain(disk) == [*range(150), *range(200, 210)]
        assert disk.dropped == {"expired": 50}
        assert disk.broker.balance() == (0, 0)
        assert rows_in(disk) == EMPTY


@pytest.mark.parametrize("topic_filter", ["a", "$share/g/a"])
def test_a_tail_that_expires_before_its_page_is_read(path: Path, topic_filter: str) -> None:
    """Its client is there already; what comes next goes out at once."""
    with Disk(path) as disk:
        away(disk, "away", topic_filter)
        fill(disk, "a", range(100), expiry=100)
    with Disk(path, wall=1_700_001_000.0) as disk:
        reader = Receiver("away")
        reader.client = arrive(disk, "away")
        hear(disk, look(disk))
        assert disk.dropped == {"expired": 100}
        disk.commit()
        fill(disk, "a", range(100, 103))
        assert reader.drain(disk) == [100, 101, 102]
        assert disk.broker.balance() == (0, 0)


# Room.


@contextlib.contextmanager
def drained(path: Path) -> Iterator[Disk]:
    """A broker whose file is mostly free pages."""
    with Disk(path) as disk:
        away(disk, "away", "a")
        fill(disk, "a", range(800), size=4000)
        assert Receiver("away").connect(disk).drain(disk) == list(range(800))
        yield disk


def pages_of(disk: Disk) -> tuple[int, int]:
    """All pages of the file, and the free ones."""
    ((total,), (free,)) = disk.rows("PRAGMA page_count") + disk.rows("PRAGMA freelist_count")
    return total, free


@pytest.mark.usefixtures("slices")
def test_free_pages_are_given_back(path: Path) -> None:
    with drained(path) as disk:
        total, free = pages_of(disk)
        assert total > 800
        assert free > 700
        assert tidy(disk) > (free - sqlite._FREE_PAGES) // sqlite._SLICE_PAGES
        total, free = pages_of(disk)
        assert free <= sqlite._FREE_PAGES
        assert total < sqlite._FREE_PAGES + 120
        assert_sound(disk)
    assert path.stat().st_size == total * 4096
    with Disk(path) as disk:
        assert "away" in disk.broker.sessions


@pytest.mark.usefixtures("slices")
def test_a_crash_while_free_pages_are_given_back(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(drained(path))
        for _ in range(3):
            before = pages_of(disk)[0]
            assert disk.tidy()
            # A page of the file's own, that maps others, may go with them.
            assert before - sqlite._SLICE_PAGES - 1 <= pages_of(disk)[0] < before
            disk = stack.enter_context(disk.crash())
            assert_sound(disk)
        fill(disk, "a", range(100))
        tidy(disk)
        assert Receiver("away").connect(disk).drain(disk) == list(range(100))
        assert_sound(disk)


@pytest.mark.usefixtures("slices")
def test_free_pages_are_kept_for_what_comes_next(path: Path) -> None:
    """An eighth of a large file."""
    with Disk(path) as disk:
        away(disk, "one", "a")
        away(disk, "two", "b")
        fill(disk, "a", range(2000), size=4000)
        fill(disk, "b", range(200), size=4000)
        total = pages_of(disk)[0]
        assert total > 2000
        Receiver("two").connect(disk).drain(disk)
        free = pages_of(disk)[1]
        assert sqlite._FREE_PAGES < free < total >> 3
        assert tidy(disk) == 1
        assert pages_of(disk)[1] == free
