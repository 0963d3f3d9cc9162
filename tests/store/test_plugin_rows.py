"""Tables of plugins in the file: what comes back of them, and when it does."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mqttd.core.message import Message
from mqttd.core.tables import MAX_NAME
from mqttd.store import committer
from mqttd.store.base import StoreFull
from tests.store.disk import Disk, assert_sound, away, limited, state_of
from tests.store.lane import FULL, HELD, KEPT, LOST, Lane, hasten

ROWS = "SELECT name, key, value FROM plugin_rows ORDER BY name, key"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "mqttd.db"


def retain(disk: Disk, payload: bytes) -> int:
    """What a plugin publishes for good: a retained message. Returns its barrier."""
    message = Message("r", b"r", payload, 1, True, b"", 0.0, "")
    return disk.broker.retain(message)


def test_rows_survive(path: Path) -> None:
    with Disk(path) as disk:
        tables = disk.broker.tables
        tables.set("bans", "10.0.0.1", b"until\x00tomorrow")
        tables.set("delayed", "10.0.0.1", b"")
        barrier = tables.set("delayed", "7", bytes(range(256)) * 100)
        disk.commit()
        assert disk.broker.journal.committed == barrier
        expected = state_of(disk)["tables"]
        assert len(expected["delayed"]) == 2
        with disk.crash() as other:
            assert state_of(other)["tables"] == expected
            assert other.broker.tables.drop("bans", "10.0.0.1")
            assert other.broker.tables.clear("delayed")
            other.commit()
            assert other.rows(ROWS) == []
            with other.crash() as third:
                assert third.broker.tables.rows == {}
    with Disk(path) as disk:
        assert state_of(disk)["tables"] == expected
        assert disk.broker.take_batch() is None  # to read them is no change


@pytest.mark.parametrize(
    "name", ["", "a\x00b", "ünï/+#$", "\U0001f600", "\n", "x" * MAX_NAME, "'; DROP TABLE meta"]
)
def test_any_text_is_a_name(name: str, path: Path) -> None:
    with Disk(path) as disk:
        disk.broker.tables.set(name, name, b"v")
        disk.broker.tables.set(name, "other", b"w")
        disk.commit()
    with Disk(path) as disk:
        assert sorted(disk.broker.tables.items(name)) == sorted([(name, b"v"), ("other", b"w")])
        disk.broker.tables.drop(name, name)
        disk.commit()
        assert disk.rows("SELECT key FROM plugin_rows") == [("other",)]
        assert_sound(disk)


def test_what_was_not_committed_is_not_there(path: Path) -> None:
    with Disk(path) as disk:
        disk.broker.tables.set("t", "k", b"old")
        disk.commit()
        disk.broker.tables.set("t", "k", b"new")
        disk.broker.tables.set("t", "l", b"new")
        with disk.crash() as other:
            assert other.broker.tables.rows == {"t": {"k": b"old"}}


def test_of_a_batch_the_last_word_on_a_row_is_written(path: Path) -> None:
    with Disk(path) as disk:
        tables = disk.broker.tables
        tables.set("t", "stays", b"1")
        tables.set("t", "goes", b"1")
        disk.commit()
        for number in range(10):
            tables.set("t", "stays", b"%d" % number)
            tables.set("t", "brief", b"%d" % number)
        tables.drop("t", "goes")
        tables.set("t", "back", b"1")
        tables.drop("t", "back")
        tables.set("t", "back", b"2")
        tables.drop("t", "brief")
        batch = disk.broker.take_batch()
        assert batch is not None
        assert disk.store._encoder is not None
        written = disk.store._encoder.encode(batch).plugin_rows
        assert written == {
            ("t", "stays"): ("t", "stays", b"9"),
            ("t", "brief"): None,
            ("t", "goes"): None,
            ("t", "back"): ("t", "back", b"2"),
        }
        disk.write(batch)
        assert disk.rows(ROWS) == [("t", "back", b"2"), ("t", "stays", b"9")]


def test_many_rows_at_once(path: Path) -> None:
    """More than one statement takes."""
    with Disk(path) as disk:
        tables = disk.broker.tables
        for number in range(700):
            tables.set("t", f"{number}", b"%d" % number)
        disk.commit()
        for number in range(0, 700, 2):
            tables.drop("t", f"{number}")
        disk.commit()
        with disk.crash() as other:
            assert other.broker.tables.rows == {
                "t": {f"{number}": b"%d" % number for number in range(1, 700, 2)}
            }


def test_no_statement_walks_the_table(path: Path) -> None:
    """However many rows plugins have, a batch touches its own."""
    with Disk(path) as disk:
        tables = disk.broker.tables
        for key in "abc":
            tables.set("t", key, b"v")
        disk.commit()
        assert disk.store._db is not None
        statements: list[str] = []
        disk.store._db.set_trace_callback(statements.append)
        tables.drop("t", "a")
        tables.drop("t", "b")
        tables.set("t", "c", b"w")
        disk.commit()
        disk.store._db.set_trace_callback(None)
        plans = [
            row[3]
            for statement in statements
            if "plugin_rows" in statement
            for row in disk.rows(f"EXPLAIN QUERY PLAN {statement}")
        ]
        assert [plan for plan in plans if plan.startswith("SEARCH plugin_rows USING PRIMARY KEY")]
        assert not [plan for plan in plans if plan.startswith("SCAN plugin_rows")]


# One lane with the messages.


def test_a_row_and_a_message_of_one_batch_are_there_together(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        tables = disk.broker.tables
        tables.set("delayed", "1", b"x" * 100)
        disk.commit()
        # Its time has come: out of the table, and into the queue. There is no room for that.
        limited(disk, 4)
        tables.drop("delayed", "1")
        message = Message("a", b"a", b"x" * 100_000, 1, False, b"", 0.0, "")
        disk.broker.publish(message, disk.now)
        batch = disk.broker.take_batch()
        assert batch is not None
        tables.set("delayed", "2", b"comes later")
        with pytest.raises(StoreFull, match="no room left on the disk"):
            disk.write(batch)
        with disk.crash() as other:
            assert other.broker.tables.rows == {"delayed": {"1": b"x" * 100}}
            assert other.broker.balance() == (0, 0)
        limited(disk, 1000)
        disk.retry()
        with disk.crash() as other:
            assert other.broker.tables.rows == {}
            assert other.broker.balance() == (1, 0)
        disk.broker.committed(batch.seq, disk.now)
        disk.commit()
        assert disk.rows("SELECT key FROM plugin_rows") == [("2",)]


FAULTS = (LOST, KEPT, FULL, HELD)


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", range(1, 7))
def test_at_every_commit_that_goes_wrong(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fault: str, patient: bool
) -> None:
    """The row says what the retained message does, and no less than what was reported."""
    hasten(monkeypatch)
    lane = Lane(path, durability="os")
    monkeypatch.setattr(committer, "monotonic", lane.tick)
    with lane:
        tables = lane.broker.tables
        if patient:
            lane.be_patient()
        lane.store.faults[number] = fault
        said: list[tuple[int, bytes]] = [(0, b"0")]
        reported = 0
        for step in range(1, 9):
            value = b"%d" % step
            said.append((max(retain(lane, value), tables.set("t", "k", value)), value))
            if step % 3 == 0:  # set and taken back in one go
                tables.set("t", "brief", value)
                tables.drop("t", "brief")
            lane.commit()
            reported = lane.broker.journal.committed
        if fault == FULL:
            lane.store.room = True
            lane.commit()
            reported = lane.broker.journal.committed
        with lane.crash() as other:
            kept = [value for barrier, value in said if barrier <= reported]
            row = other.broker.tables.get("t", "k") or b"0"
            message = other.broker.retained.get("r")
            assert row == (b"0" if message is None else message.payload)
            assert int(row) >= int(kept[-1])
            assert other.broker.tables.get("t", "brief") is None
            assert_sound(other)
        assert (kept[-1] == b"8") is (fault == FULL)
        if lane.store.held:
            lane.store.release()


# Whatever plugins do, what is committed is what comes back.

NAMES = st.sampled_from(["", "a", "b", "\x00"])
MOVES = st.lists(
    st.tuples(st.sampled_from("sssdcCX"), NAMES, NAMES, st.binary(max_size=3)), max_size=30
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=MOVES)
def test_what_is_committed_comes_back(
    moves: list[tuple[str, str, str, bytes]], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "kept", ignore_errors=True)
    with Disk(tmp_path / "kept" / "db") as disk:
        tables = disk.broker.tables
        committed = state_of(disk)
        for move, table, key, value in moves:
            if move == "s":
                tables.set(table, key, value)
            elif move == "d":
                tables.drop(table, key)
            elif move == "c":
                tables.clear(table)
            elif move == "C":
                disk.commit()
                committed = state_of(disk)
            else:
                with disk.crash() as other:
                    assert state_of(other) == committed
        disk.commit()
        with disk.crash() as other:
            assert state_of(other) == state_of(disk)
            rows = [row for rows in tables.rows.values() for row in rows]
            assert other.rows("SELECT count(*) FROM plugin_rows") == [(len(rows),)]
