"""A store that fails, is full, takes long or dies, at every commit of a workload in turn.

What was acknowledged is in the file, what couldn't be kept is refused, and everybody else goes on.
"""

import logging
import sqlite3
from pathlib import Path

import pytest

from mqttd.core import spec
from mqttd.core.packets import Filter, Puback, Pubrec, Record, Suback, Subscribe
from mqttd.store import committer, sqlite, tables
from mqttd.store.base import StoreError
from tests.store.disk import (
    EMPTY,
    Disk,
    Receiver,
    assert_sound,
    away,
    fill,
    payloads,
    rows_in,
    subscribe,
)
from tests.store.lane import FULL, HELD, KEPT, LOST, Lane, World, hasten, left_behind

COMMITS = 46
"""Of the workload: a test holds it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "mqttd.db"


@pytest.fixture(autouse=True)
def _hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)


def started(path: Path, monkeypatch: pytest.MonkeyPatch, durability: str = "os") -> Lane:
    lane = Lane(path, durability=durability)
    monkeypatch.setattr(committer, "monotonic", lane.tick)
    return lane


@pytest.fixture(name="lane")
def _lane(path: Path, monkeypatch: pytest.MonkeyPatch) -> Lane:
    return started(path, monkeypatch)


class Probe:
    """Three publishers who ask whether the broker takes anything: MQTT 5 and MQTT 3.1.1."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.five = lane.client("probe")
        self.three = lane.client("older probe", version=4)
        self.three.auto_ack = self.five.auto_ack = False

    def ask(self) -> list[Record]:
        """The answers to QoS 1 and 2 by MQTT 5, then to QoS 1 and 2 by MQTT 3.1.1."""
        for client in (self.five, self.three):
            client.publish("a/probe", b"100", qos=1)
            client.publish("a/probe", b"100", qos=2)
        self.lane.commit()
        return [*self.five.recv(), *self.three.recv()]

    def refused(self) -> int:
        """With which code MQTT 5 is refused; MQTT 3.1.1 hears nothing, and keeps its messages."""
        at_1, at_2 = self.ask()
        assert isinstance(at_1, Puback)
        assert isinstance(at_2, Pubrec)
        assert at_1.reason == at_2.reason
        assert not self.three.closed
        return at_1.reason


# The workload.


def test_the_workload(path: Path, lane: Lane) -> None:
    """Without a fault: as many commits as the other tests take for granted, and all is well."""
    world = World()
    with lane:
        world.run(lane)
        assert lane.store.commits == COMMITS
        assert not world.source.pending
        assert not world.old.pending
        assert len(world.granted) == 5
        assert world.on.got[-1] == 21
    with Disk(path) as disk:
        world.check(disk)


# A commit fails.


@pytest.mark.parametrize("fault", [LOST, KEPT])
@pytest.mark.parametrize("number", range(COMMITS))
def test_nothing_is_acknowledged_after_a_commit_that_failed(
    path: Path, lane: Lane, number: int, fault: str
) -> None:
    world = World()
    known: list[World] = []

    def after(_: int) -> None:
        if lane.failures and not known:
            known.append(world.copy())

    with lane:
        lane.store.faults[number] = fault
        world.run(lane, after)
        assert lane.failures == 1
        assert lane.committer.failed
        assert lane.store.commits == number + 1
        (then,) = known
        # Where nobody has to keep a message there is nothing to wait for.
        assert set(world.source.promised()) - set(then.source.promised()) <= {12}
        assert world.old.promised() == then.old.promised()
        assert world.granted.items() <= then.granted.items()
        assert Probe(lane).refused() == spec.UNSPECIFIED_ERROR
    with Disk(path) as disk:
        world.check(disk)


def test_what_waits_for_a_commit_that_fails_is_refused_or_stays_unanswered(lane: Lane) -> None:
    with lane:
        away(lane, "away", "a")
        five = lane.client("five")
        three = lane.client("three", version=4)
        lane.commit()
        five.auto_ack = three.auto_ack = False
        lane.store.faults[lane.store.commits] = LOST
        for client in (five, three):
            client.publish("a", b"1", qos=1)
            client.publish("a", b"2", qos=2)
        lane.commit()
        (answer,) = five.recv()
        assert isinstance(answer, Puback)
        assert answer.reason == spec.UNSPECIFIED_ERROR
        three.expect_nothing()


def test_a_broken_store_takes_no_sessions_and_no_subscriptions(lane: Lane) -> None:
    with lane:
        away(lane, "away", "a")
        lasting = lane.client("lasting", expiry=3600)
        lane.store.faults[lane.store.commits] = LOST
        lane.commit()
        assert lane.failures == 1
        lasting.publish("a", b"1", qos=0)  # is routed as ever
        assert lasting.subscribe("b", 1).reasons == [spec.UNSPECIFIED_ERROR]
        brief = lane.client("brief")
        assert brief.subscribe("b", 1).reasons == [1]
        brief.publish("b", b"2", qos=1)
        assert [type(each) for each in brief.recv()].count(Puback) == 1
        other = lane.open()
        with pytest.raises(AssertionError, match="refused"):
            lane.client("new", expiry=3600)
        assert not other.closed


@pytest.mark.parametrize("fault", [LOST, KEPT, FULL, HELD])
@pytest.mark.parametrize("number", range(1, 40, 7))
def test_faults_while_the_latest_is_kept_back(
    path: Path, lane: Lane, number: int, fault: str
) -> None:
    world = World()
    met: list[World] = []

    def after(_: int) -> None:
        store = lane.store
        if not (lane.failures or store.held or not store.room) or (met and lane.failures):
            return
        met.append(world.copy())
        if store.held:
            store.release()
        store.room = True
        if not lane.failures:
            world.settle(lane)

    with lane:
        lane.be_patient()
        lane.store.faults[number] = fault
        world.run(lane, after)
        assert len(met) == 1
        assert lane.failures == (fault in (LOST, KEPT))
        if lane.failures:
            (then,) = met
            assert set(world.source.promised()) - set(then.source.promised()) <= {12}
            assert world.old.promised() == then.old.promised()
    with Disk(path) as disk:
        world.check(disk)


# There is no room.


def deep(path: Path) -> None:
    """A session with more in the file than in memory."""
    with Disk(path, durability="os") as disk:
        away(disk, "deep", "deep")
        fill(disk, "deep", range(1000, 1200))


@pytest.mark.parametrize("number", range(COMMITS))
def test_a_full_disk_is_waited_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    deep(path)
    lane = started(path, monkeypatch)
    world = World()
    full: list[World] = []

    def after(_: int) -> None:
        if lane.store.room:
            return
        full.append(world.copy())
        while lane.store.tries < 3:
            lane.commit()
        probe = Probe(lane)
        assert probe.refused() == spec.QUOTA_EXCEEDED
        # What was in the file before goes on, page by page.
        reader = Receiver("deep").connect(lane, receive_maximum=20)
        while reader.work():
            lane.commit()
        assert reader.got == list(range(1000, 1200))
        assert lane.store.pages_read
        reader.drop()
        assert not lane.failures
        world.look()
        assert world.source.promised() == full[0].source.promised()
        lane.store.room = True
        lane.commit()
        world.settle(lane)
        assert not lane.broker.journal.refusing
        probe.three.recv()
        assert [getattr(each, "reason", 0) for each in probe.ask()] == [0, 0, 0, 0]

    with lane:
        lane.store.faults[number] = FULL
        world.run(lane, after)
        assert len(full) == 1
        assert not lane.failures
        assert not lane.committer.failed
    with Disk(path) as disk:
        world.check(disk)


def test_who_waits_for_a_batch_without_room_is_refused(path: Path, lane: Lane) -> None:
    """MQTT 5 at QoS 1 is told; everything else gets its answer when there is room."""
    with lane:
        away(lane, "away", "a", qos=2)
        five = lane.client("five")
        three = lane.client("three", version=4)
        lasting = lane.client("lasting", expiry=3600)
        lane.commit()
        five.auto_ack = three.auto_ack = False
        lane.store.faults[lane.store.commits] = FULL
        for client in (five, three):
            client.publish("a", b"1", qos=1, packet_id=1)
            client.publish("a", b"2", qos=2, packet_id=2)
        lasting.send(Subscribe(1, [Filter("b", 1)], 0))
        lane.commit()
        assert [(type(each), getattr(each, "reason", 0)) for each in five.recv()] == [
            (Puback, spec.QUOTA_EXCEEDED)
        ]
        three.expect_nothing()
        lasting.expect_nothing()
        assert lane.broker.context.holding
        lane.store.room = True
        lane.commit()
        assert [type(each) for each in five.recv()] == [Pubrec]
        assert [type(each) for each in three.recv()] == [Puback, Pubrec]
        assert lasting.take_first(Suback).reasons == [1]
        assert not lane.broker.context.holding
    with Disk(path) as disk:
        # The one that was refused may come all the same.
        assert len(disk.queued(disk.broker.sessions["away"])) in (3, 4)


def test_no_room_for_real(path: Path, lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite itself says so, and goes on as if nothing had been once there is room."""
    with lane, caplog.at_level(logging.WARNING, "mqttd.store"):
        away(lane, "away", "a")
        fill(lane, "a", range(100))
        db = lane.store._db
        assert db is not None
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 3}")
        source = lane.client("source")
        for number in range(100, 105):
            source.publish("a", (b"%d" % number).ljust(20_000, b"."), qos=1)
        lane.commit()
        assert [each.reason for each in source.recv() if isinstance(each, Puback)] == [0x97] * 5
        assert "no room left on the disk" in caplog.text
        assert not lane.failures
        lane.tidy()  # which must not be what breaks it
        reader = Receiver("away").connect(lane, receive_maximum=7)
        while reader.work():
            lane.commit()
        # All but those that aren't in the file: and of these the head.
        assert reader.got[:100] == list(range(100))
        db.execute("PRAGMA max_page_count = 100000")
        lane.commit()
        assert "there is room again" in caplog.text
        assert reader.drain(lane) == list(range(105))
        source.publish("a", b"105", qos=1)
        lane.commit()
        assert [each.reason for each in source.recv() if isinstance(each, Puback)] == [0]
        assert reader.drain(lane)[-1] == 105
        lane.commit()
        assert rows_in(lane) == EMPTY
        assert_sound(lane)


def test_deliveries_that_need_no_room_go_on(lane: Lane) -> None:
    """QoS 0, QoS 1 to whoever doesn't last, and from a window that was in the file before."""
    with lane:
        away(lane, "away", "a")
        fill(lane, "a", range(10))
        brief = lane.client("brief")
        brief.subscribe("b", 1)
        source = lane.client("source")
        lane.store.faults[lane.store.commits] = FULL
        source.publish("a", b"10", qos=1)
        lane.commit()
        assert not lane.store.room
        source.recv()
        source.publish("b", b"quick", qos=1)
        assert payloads(brief) == [b"quick"]
        assert [type(each) for each in source.recv()] == [Puback]
        source.publish("r", b"kept?", qos=0, retain=True)
        assert lane.broker.retained.count == 0  # it need not be, and it isn't
        reader = Receiver("away").connect(lane)
        while reader.work():
            lane.commit()
        assert reader.got == list(range(11))
        lane.store.room = True
        lane.commit()
        assert rows_in(lane) == EMPTY


def test_qos_2_deliveries_wait_for_room(path: Path, lane: Lane) -> None:
    """A crash meanwhile can't double them."""
    with lane:
        away(lane, "away", "a", qos=2)
        fill(lane, "a", range(5), qos=2)
        source = lane.client("source")
        lane.store.faults[lane.store.commits] = FULL
        source.publish("a", b"5", qos=1)
        lane.commit()
        reader = Receiver("away").connect(lane)
        reader.work()
        assert 0 not in reader.got
        with Disk(left_behind(path, "full")) as other:
            assert sorted(Receiver("away").connect(other).drain(other)) == list(range(5))
        lane.store.room = True
        lane.commit()
        assert sorted(reader.drain(lane)) == list(range(6))
        assert rows_in(lane) == EMPTY


def test_a_stop_while_the_disk_is_full_ends_after_a_few_tries(
    path: Path, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL, "mqttd.store"):
        with lane:
            away(lane, "away", "a")
            source = lane.client("source", version=4)
            lane.store.faults[lane.store.commits] = FULL
            source.publish("a", b"1", qos=1)
            lane.turn(10)
            lane.commit()
            before = lane.store.tries
            lane.stop()
            assert lane.store.tries - before in (4, 5)  # one may have been under way
            assert lane.failures == 1
            assert lane.committer.failed
            source.expect_nothing()
        assert "no room left on the disk" in caplog.text
    with Disk(path) as disk:
        assert disk.broker.balance() == (0, 0)


def test_a_stop_while_the_disk_is_full_and_then_is_not(path: Path, lane: Lane) -> None:
    with lane:
        away(lane, "away", "a")
        source = lane.client("source", version=4)
        lane.store.faults[lane.store.commits] = FULL
        source.publish("a", b"1", qos=1)
        lane.commit()
        source.publish("a", b"2", qos=0)
        lane.store.room = True
        lane.stop()
        assert not lane.failures
        assert source.expect(Puback)
    with Disk(path) as disk:
        assert disk.broker.balance() == (1, 0)


def test_a_disk_that_breaks_while_it_is_full(path: Path, lane: Lane) -> None:
    with lane:
        away(lane, "away", "a")
        source = lane.client("source", version=4)
        lane.store.faults[lane.store.commits] = FULL
        source.publish("a", b"1", qos=1)
        lane.commit()
        lane.store._failure = StoreError("the disk is broken")
        lane.store.room = True
        lane.commit()
        assert lane.failures == 1
        assert lane.broker.journal.refusing
        source.expect_nothing()


def test_no_room_for_a_store_that_writes_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tail in the batch without room is not lost, though its acknowledgements have left."""
    deep(path)
    with started(path, monkeypatch, "none") as lane:
        source = lane.client("source")
        lane.commit()
        lane.store.faults[lane.store.commits] = FULL
        for number in range(1200, 1300):
            source.publish("deep", b"%d" % number, qos=1)
        lane.commit()
        assert sum(isinstance(each, Puback) for each in source.recv()) == 100
        reader = Receiver("deep").connect(lane)
        while reader.work():
            lane.commit()
        lane.store.room = True
        lane.commit()
        assert reader.drain(lane) == list(range(1000, 1300))
        assert lane.broker.counters.bugs == 0
        assert lane.broker.balance() == (0, 0)


# A commit takes its time.


@pytest.mark.parametrize("number", range(COMMITS))
def test_acknowledgements_wait_for_a_commit_that_takes_long(
    path: Path, lane: Lane, number: int
) -> None:
    """What was acknowledged meanwhile is in the file without it; then order is kept."""
    world = World()
    held: list[int] = []

    def after(step: int) -> None:
        if not lane.store.held:
            return
        held.append(step)
        assert lane.store.commits == number + 1
        for each in range(30, 33):
            if world.source.client is not None:
                world.source.publish(each, 1)
            lane.commit()
        assert lane.store.commits == number + 1
        world.look()
        with Disk(left_behind(path, "held")) as other:
            world.copy().check(other)
        lane.store.release()
        world.settle(lane)

    with lane:
        lane.store.faults[number] = HELD
        world.run(lane, after)
        assert len(held) == 1
        for source in (world.source, world.old):
            assert not source.pending
            for qos in (1, 2):  # [MQTT-4.6.0-2]
                acked = [each for each in source.acked if source.qos[each] == qos]
                assert acked == [each for each in source.qos if each in acked]
    with Disk(path) as disk:
        world.check(disk)


def test_what_is_settled_while_a_commit_takes_long_is_never_written(lane: Lane) -> None:
    with lane:
        reader = lane.client("reader", expiry=3600)
        subscribe(lane, reader, "a")
        away(lane, "away", "b")
        source = lane.client("source")
        commits = lane.store.commits
        lane.store.faults[commits] = HELD
        source.publish("b", b"held", qos=1)
        lane.commit()
        assert lane.store.held
        source.expect_nothing()
        elided = lane.broker.journal.elided
        for number in range(20):
            source.publish("a", b"%d" % number, qos=1)
            lane.commit()
        assert len(payloads(reader)) == 20
        assert lane.broker.journal.elided == elided + 20
        source.expect_nothing()  # in order: they wait for the first, not for the file
        lane.store.release()
        lane.commit()
        assert sum(isinstance(each, Puback) for each in source.recv()) == 21
        assert lane.store.commits == commits + 1


# The process dies.


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_a_crash_at_every_boundary(path: Path, lane: Lane, part: int, patient: bool) -> None:
    """Just before a commit, and just after it, before the core has heard of it."""
    world = World()
    left: list[tuple[Path, World]] = []

    def around(number: int, done: bool) -> None:
        if number % 4 == part:
            left.append((left_behind(path, f"{number}-{done}"), world.copy()))

    with lane:
        lane.store.around = around
        if patient:
            lane.be_patient()
        world.run(lane)
    assert len(left) >= 2 * len(range(part, COMMITS // 2, 4))
    for place, then in left:
        with Disk(place) as disk:
            then.check(disk)


# What else can fail.


def test_a_page_that_cannot_be_read_is_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep(path)
    with started(path, monkeypatch) as lane:
        lane.store.page_error = StoreError("input/output error")
        reader = Receiver("deep").connect(lane)
        assert lane.failures == 1
        assert lane.committer.failed
        assert not reader.work()
        assert lane.broker.counters.dropped == {}
    with Disk(path) as disk:
        assert Receiver("deep").connect(disk).drain(disk) == list(range(1000, 1200))


def test_a_page_that_cannot_be_read_while_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep(path)
    with started(path, monkeypatch) as lane:
        source = lane.client("source")
        lane.store.faults[lane.store.commits] = FULL
        source.publish("deep", b"1", qos=1)
        lane.commit()
        lane.store.page_error = StoreError("input/output error")
        Receiver("deep").connect(lane)
        assert lane.failures == 1
        lane.store.room = True
        lane.commit()
        assert lane.failures == 1


@pytest.mark.parametrize(
    ("error", "logged", "ends"),
    [
        (StoreError("no"), "the store is broken", True),
        (RuntimeError("a bug"), "housekeeping", False),
    ],
)
def test_housekeeping_ends_with_its_failure_and_the_broker_with_that_of_the_store(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    logged: str,
    ends: bool,
) -> None:
    monkeypatch.setattr(committer, "_TIDY_S", 0.0)
    with started(path, monkeypatch) as lane:
        away(lane, "away", "a")
        lane.store.tidy_error = error
        with caplog.at_level(logging.ERROR, "mqttd.store"):
            lane.turn(10)
        slices = lane.store.slices
        lane.turn(10)
        assert lane.store.slices == slices  # it has ended
        assert logged in caplog.text
        if not ends:
            fill(lane, "a", range(10))
        assert lane.failures == ends


def test_housekeeping_goes_on_in_the_background(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it finds expired is dropped, what is garbage goes, without anybody asking."""
    monkeypatch.setattr(sqlite, "_SLICE_ROWS", 50)
    deep(path)
    with Disk(path, durability="os") as disk:
        away(disk, "brief", "deep")
        fill(disk, "deep", range(1200, 1400), expiry=60)
        disk.client("brief", expiry=0).disconnect()
        disk.commit()
    monkeypatch.setattr(committer, "_TIDY_S", 0.0)
    with Lane(path, wall=1_700_001_000.0) as lane:
        monkeypatch.setattr(committer, "monotonic", lane.tick)
        for _ in range(10):
            lane.commit()
        assert lane.dropped == {"expired": 200}
        assert rows_in(lane) == {"deliveries": 200, "messages": 200, "refs": 0}
        assert Receiver("deep").connect(lane).drain(lane) == list(range(1000, 1200))


def sqlite_error(code: int, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("said so")
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


def test_housekeeping_without_room_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Disk(path) as disk:
        away(disk, "c", "a")
        fill(disk, "a", range(200))
        disk.client("c", expiry=0).disconnect()
        disk.commit()
        forget = tables.forget

        def full(db: sqlite3.Connection, serials: object) -> None:
            db.execute("DELETE FROM messages")
            raise sqlite_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")

        monkeypatch.setattr(tables, "forget", full)
        assert not disk.tidy()
        monkeypatch.setattr(tables, "forget", forget)
        away(disk, "other", "a")
        assert_sound(disk)
        while disk.tidy():
            pass
        assert rows_in(disk) == EMPTY


def test_housekeeping_that_meets_a_broken_disk_is_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Disk(path) as disk:
        away(disk, "c", "a")
        fill(disk, "a", range(200))
        disk.client("c", expiry=0).disconnect()
        disk.commit()

        def broken(db: sqlite3.Connection, serials: object) -> None:
            raise sqlite_error(sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC")

        monkeypatch.setattr(tables, "forget", broken)
        with pytest.raises(StoreError, match="input/output error"):
            disk.tidy()
        monkeypatch.undo()
        with pytest.raises(StoreError, match="input/output error"):
            away(disk, "other", "a")
    with Disk(path) as disk:
        assert_sound(disk)
