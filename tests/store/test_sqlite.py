"""The file: what is in it after a commit, what comes back of it, and when it is refused."""

import contextlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mqttd.core.packets import (
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    Will,
)
from mqttd.core.settings import NEVER, Settings
from mqttd.store import schema
from mqttd.store.base import StoreError, StoreFull
from tests.harness import FakeClient
from tests.store.disk import Disk, away, limited, payloads, state_of, subscribe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "mqttd.db"


# What comes back.


def test_sessions_queues_and_retained_messages_survive(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a/+", qos=2)
        source = disk.client("source")
        for number in range(5):
            source.publish("a/b", b"%d" % number, qos=1 + number % 2)
        source.publish("r", b"kept", qos=1, retain=True, properties=b"\x03\x00\x01x")
        assert not [p for p in source.received if isinstance(p, Puback | Pubrec)]
        disk.commit()
        assert len([p for p in source.recv() if isinstance(p, Puback | Pubrec)]) == 6
        expected = state_of(disk)
        with disk.crash() as other:
            assert state_of(other) == expected
            assert other.broker.balance() == (5, 0)
            assert other.broker.counters.matched == 5
            client = other.client("away", clean=False, expiry=3600)
            assert client.connack.session_present
            other.commit()
            assert payloads(client) == [b"0", b"1", b"2", b"3", b"4"]
            other.commit()
            assert other.rows("SELECT count(*) FROM deliveries") == [(0,)]
            assert other.rows("SELECT count(*) FROM messages") == [(0,)]
            subscribe(other, client, "r")
            assert payloads(client) == [b"kept"]


def test_a_window_goes_out_again_with_the_same_identifiers(path: Path) -> None:
    # [MQTT-4.4.0-1] [MQTT-4.3.3-6] the state of each exchange is what was acknowledged of it
    with Disk(path) as disk:
        client = disk.client("c", expiry=3600, auto_ack=False)
        subscribe(disk, client, "a", 2)
        source = disk.client("source")
        for number in range(3):
            source.publish("a", b"%d" % number, qos=2 if number else 1)
        disk.commit()
        sent = client.messages()
        assert [p.dup for p in sent] == [False] * 3
        client.send(Pubrec(sent[1].packet_id))
        disk.commit()
        assert client.expect(Pubrel).packet_id == sent[1].packet_id
        with disk.crash() as other:
            again = other.client("c", clean=False, expiry=3600, auto_ack=False)
            assert again.connack.session_present
            second = again.take_first(Pubrel)
            first, third = again.messages()
            assert (first.packet_id, first.payload, first.dup) == (sent[0].packet_id, b"0", True)
            assert second.packet_id == sent[1].packet_id
            assert (third.packet_id, third.payload, third.dup) == (sent[2].packet_id, b"2", True)
            again.send(Puback(first.packet_id))
            again.send(Pubcomp(second.packet_id))
            other.commit()
            assert other.rows("SELECT packet_id FROM deliveries") == [(third.packet_id,)]


def test_an_inbound_exchange_is_not_routed_twice(path: Path) -> None:
    # [MQTT-4.3.3-10]
    with Disk(path) as disk:
        away(disk, "away", "a", qos=2)
        source = disk.client("source", expiry=60, clean=False)
        source.auto_ack = False
        source.publish("a", b"once", qos=2, packet_id=7)
        disk.commit()
        assert source.take_first(Pubrec).packet_id == 7
        with disk.crash() as other:
            again = other.client("source", clean=False, expiry=60)
            again.auto_ack = False
            again.publish("a", b"once", qos=2, packet_id=7, dup=True)
            other.commit()
            assert again.take_first(Pubrec).packet_id == 7
            assert other.broker.balance() == (1, 0)
            again.send(Pubrel(7))
            other.commit()
            assert again.take_first(Pubcomp).reason == 0
            assert other.rows("SELECT count(*) FROM inbound") == [(0,)]


def test_what_was_not_committed_was_not_acknowledged(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        source = disk.client("source")
        source.publish("a", b"lost", qos=1)
        source.expect_nothing()
        with disk.crash() as other:
            assert other.broker.balance() == (0, 0)
            assert "away" in other.broker.sessions


def test_a_payload_stands_once_for_all_its_recipients(path: Path) -> None:
    with Disk(path) as disk:
        for name in "xyz":
            away(disk, name, "a")
        disk.client("source").publish("a", b"shared", qos=1)
        disk.commit()
        assert disk.rows("SELECT count(*) FROM messages") == [(1,)]
        assert disk.rows("SELECT count(*) FROM deliveries") == [(3,)]
        for left, name in zip((2, 1, 0), "xyz", strict=True):
            disk.client(name, clean=False, expiry=3600).disconnect()
            disk.commit()
            assert disk.rows("SELECT count(*) FROM deliveries") == [(left,)]
            assert disk.rows("SELECT count(*) FROM messages") == [(min(left, 1),)]


def test_recipients_are_counted_across_a_restart(path: Path) -> None:
    with Disk(path) as disk:
        for name in "xyz":
            away(disk, name, "a")
        disk.client("source").publish("a", b"shared", qos=1)
        disk.commit()
    with Disk(path) as disk:
        disk.client("source").publish("a", b"another", qos=1)
        for left, name in zip((2, 2, 0), "xyz", strict=True):
            assert payloads(disk.client(name, clean=False, expiry=3600)) == [b"shared", b"another"]
            disk.commit()
            assert disk.rows("SELECT count(*) FROM messages") == [(left,)]


def test_what_is_settled_at_once_is_never_written(path: Path) -> None:
    with Disk(path) as disk:
        reader = disk.client("reader", expiry=3600)
        subscribe(disk, reader, "a")
        source = disk.client("source")
        source.publish("a", b"quick", qos=1)
        assert payloads(reader) == [b"quick"]
        source.expect(Puback)  # before any commit: nothing is owed any more
        batch = disk.broker.take_batch()
        assert batch is not None
        assert batch.ops == []


# Ends, that time or a client brings.


@pytest.mark.parametrize("committed", [True, False])
def test_a_serial_is_given_once_over_restarts(path: Path, committed: bool) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        disk.client("source").publish("a", b"x", 1)
        if committed:
            disk.commit()
            disk.client("away", clean=False, expiry=3600)
            disk.commit()
            assert disk.rows("SELECT count(*) FROM deliveries") == [(0,)]
        given = disk.broker.journal.next_serial - 1
        with disk.crash() as other:
            assert other.broker.journal.next_serial > given
            # Also one that was given before the first batch after a start.
            other.client("source").publish("a", b"y", 1)
            given = other.broker.journal.next_serial - 1
            with other.crash() as third:
                assert third.broker.journal.next_serial > given


def test_time_goes_on_while_the_broker_is_away(path: Path) -> None:
    # [MQTT-3.3.2-5] [MQTT-3.3.2-6]
    with Disk(path) as disk:
        away(disk, "brief", expiry=100)
        away(disk, "long", "a", expiry=1000)
        away(disk, "ever", expiry=NEVER)
        source = disk.client("source")
        source.publish("a", b"soon", qos=1, message_expiry=50)
        source.publish("a", b"later", qos=1, message_expiry=500)
        source.publish("r", b"soon", qos=1, retain=True, message_expiry=50)
        disk.advance(20.0)
        disk.commit()
        with disk.crash(away=60.0) as other:
            assert sorted(other.broker.sessions) == ["brief", "ever", "long"]
            client = other.client("long", clean=False, expiry=1000)
            (message,) = client.messages()
            assert (message.payload, message.message_expiry) == (b"later", 420)
            subscribe(other, client, "r")
            assert payloads(client) == []
            other.advance(21.0)
            assert sorted(other.broker.sessions) == ["ever", "long"]
        with disk.crash(away=90.0) as other:
            assert sorted(other.broker.sessions) == ["ever", "long"]
            other.commit()
            assert len(other.rows("SELECT 1 FROM sessions")) == 2


def test_a_session_that_was_connected_expires_from_the_restart_on(path: Path) -> None:
    with Disk(path) as disk:
        disk.client("c", expiry=100)
        disk.commit()
        with disk.crash(away=1000.0) as other:
            other.advance(99.0)
            assert "c" in other.broker.sessions
            other.advance(2.0)
            assert "c" not in other.broker.sessions


def test_a_session_that_lasts_as_long_as_its_connection_is_gone(path: Path) -> None:
    # [MQTT-4.1.0-2]
    with Disk(path) as disk:
        away(disk, "c", "a")
        disk.client("source").publish("a", b"1", qos=1)
        client = disk.client("c", clean=False, expiry=0, auto_ack=False)
        assert payloads(client) == [b"1"]
        disk.commit()
        with disk.crash() as other:
            assert not other.broker.sessions
            other.commit()
            for table in ("sessions", "subscriptions", "deliveries", "messages"):
                assert other.rows(f"SELECT * FROM {table}") == []


def test_a_clean_start_leaves_nothing_of_the_old_session(path: Path) -> None:
    # [MQTT-3.1.2-4]
    with Disk(path) as disk:
        away(disk, "c", "a", "b")
        disk.client("source").publish("a", b"1", qos=1)
        disk.commit()
        client = disk.client("c", expiry=3600)
        subscribe(disk, client, "new")
        with disk.crash() as other:
            assert list(other.broker.sessions["c"].subscriptions) == ["new"]
            assert other.broker.balance() == (0, 0)
            assert other.rows("SELECT count(*) FROM messages") == [(0,)]


def test_the_will_of_a_connected_client_goes_out_after_its_delay(path: Path) -> None:
    # [MQTT-3.1.2-8]
    with Disk(path) as disk:
        away(disk, "heir", "w")
        will = Will("w", b"gone", 1, True, 30)
        disk.client("c", expiry=3600, will=will)
        disk.commit()
        with disk.crash(away=500.0) as other:
            other.advance(29.0)
            assert other.broker.balance() == (0, 0)
            other.advance(2.0)
            assert other.broker.balance() == (1, 0)
            other.commit()
            assert other.rows("SELECT count(*) FROM wills") == [(0,)]
            assert other.rows("SELECT payload FROM retained") == [(b"gone",)]


def test_the_delay_of_a_pending_will_runs_on(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "heir", "w")
        disk.client("c", expiry=3600, will=Will("w", b"gone", 1, False, 30)).drop()
        disk.advance(20.0)
        disk.commit()
        with disk.crash(away=11.0) as other:
            assert other.broker.balance() == (1, 0)
        with disk.crash(away=5.0) as other:
            assert other.broker.balance() == (0, 0)
            back = other.client("c", clean=False, expiry=3600)  # [MQTT-3.1.3-9]
            assert back.connack.session_present
            with other.crash(away=100.0) as third:
                assert third.broker.balance() == (0, 0)


def test_a_will_that_was_taken_back_stays_so(path: Path) -> None:
    # [MQTT-3.1.2-10]
    with Disk(path) as disk:
        disk.client("c", expiry=3600, will=Will("w", b"gone", 1, True)).disconnect()
        disk.commit()
        with disk.crash() as other:
            assert other.broker.sessions["c"].will is None
            assert other.broker.retained.count == 0


def test_a_cleared_topic_is_cleared_before_anybody_hears_so(path: Path) -> None:
    """Also for the second one who clears it, while the first clearing is under way."""
    with Disk(path) as disk:
        one, two = disk.client("one"), disk.client("two")
        one.publish("r", b"v", qos=1, retain=True)
        disk.commit()
        one.recv()
        one.publish("r", b"", qos=1, retain=True)
        two.publish("r", b"", qos=1, retain=True)
        one.expect_nothing()
        two.expect_nothing()
        disk.commit()
        one.expect(Puback)
        two.expect(Puback)
        with disk.crash() as other:
            assert other.broker.retained.count == 0


# Shared subscriptions.

OF_GROUPS = "SELECT serial FROM deliveries WHERE owner IN (SELECT number FROM shares)"
OF_SESSIONS = "SELECT serial FROM deliveries WHERE owner IN (SELECT number FROM sessions)"


def test_the_queue_of_a_group_survives(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "m", "$share/g/a")
        source = disk.client("source")
        for number in range(3):
            source.publish("a", b"%d" % number, qos=1)
        disk.commit()
        assert disk.rows("SELECT name, filter FROM shares") == [("g", "a")]
        assert len(disk.rows(OF_GROUPS)) == 3
        with disk.crash() as other:
            client = other.client("m", clean=False, expiry=3600, auto_ack=False)
            other.commit()
            assert payloads(client) == [b"0", b"1", b"2"]
            assert len(other.rows(OF_SESSIONS)) == 3
            assert len(other.rows("SELECT 1 FROM messages")) == 3


def test_what_a_member_left_unfinished_goes_back_to_its_group(path: Path) -> None:
    # [MQTT-4.8.2-4] QoS 2 stays with the member that began it
    with Disk(path) as disk:
        one = disk.client("one", expiry=3600, auto_ack=False)
        subscribe(disk, one, "$share/g/a", 2)
        source = disk.client("source")
        source.publish("a", b"1", qos=1)
        source.publish("a", b"2", qos=2)
        disk.commit()
        assert payloads(one) == [b"1", b"2"]
        with disk.crash() as other:
            assert other.broker.balance() == (1, 1)
            two = other.client("two", expiry=3600)
            subscribe(other, two, "$share/g/a", 2)
            other.commit()
            assert payloads(two) == [b"1"]
            assert payloads(other.client("one", clean=False, expiry=3600)) == [b"2"]
            other.commit()
            assert other.rows("SELECT count(*) FROM deliveries") == [(0,)]
            assert other.rows("SELECT count(*) FROM messages") == [(0,)]


def test_a_delivery_that_moves_back_and_forth_leaves_one_row(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "m", "$share/g/a")
        disk.client("source").publish("a", b"1", qos=1)
        disk.commit()
        for _ in range(3):
            client = disk.client("m", clean=False, expiry=3600, auto_ack=False)
            assert payloads(client) == [b"1"]
            client.drop()
            disk.commit()
            assert len(disk.rows(OF_GROUPS)) == 1
            assert disk.rows("SELECT count(*) FROM deliveries") == [(1,)]
            assert disk.rows("SELECT count(*) FROM messages") == [(1,)]


def test_a_client_may_be_called_like_a_group(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "$share/g/a", "$share/g/a", "b")
        source = disk.client("source")
        source.publish("a", b"of the group", qos=1)
        source.publish("b", b"of the client", qos=1)
        disk.commit()
        with disk.crash() as other:
            session = other.broker.sessions["$share/g/a"]
            waiting = [each.message.payload for each in other.queued(session)]
            assert waiting == [b"of the client"]
            assert other.broker.balance() == (2, 0)


# Whatever clients do, what is committed is what comes back.

MOVES = st.lists(
    st.tuples(st.sampled_from("cdxsupPqQrRaAtC"), st.integers(0, 2), st.integers(0, 2)),
    max_size=40,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=MOVES)
def test_the_state_after_a_crash_is_the_state_before(
    moves: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "kept", ignore_errors=True)
    limits = Settings()
    limits.max_queued_messages = 4
    with Disk(tmp_path / "kept" / "db", settings=limits) as disk:
        clients: dict[int, FakeClient] = {}
        number = 0
        for move, who, what in moves:
            number += 1
            client = clients.get(who)
            if move in "cx":
                expiry = (0, 60, NEVER)[what]
                clients[who] = disk.client(
                    f"c{who}", clean=move == "x", expiry=expiry, auto_ack=what != 1
                )
            elif move == "t":
                disk.advance(10.0)
            elif move == "C":
                disk.commit()
            elif client is None or client.closed:
                continue
            elif move == "d":
                client.drop()
                del clients[who]
            elif move == "s":
                entry = Filter(("a", "+", "b")[what], 2, what == 0, what == 1, what)
                client.send(Subscribe(client.next_id(), [entry], what))
            elif move == "u":
                client.send(Unsubscribe(client.next_id(), [("a", "+", "b")[what]]))
            elif move in "pPqQ":
                client.publish("ab"[what % 2], b"%d" % number, 1 + "pPqQ".index(move) // 2)
            elif move in "rR":
                value = b"" if move == "R" else b"%d" % number
                client.publish("ab"[what % 2], value, what, retain=True)
            elif move in "aA":
                for packet in client.recv():
                    if isinstance(packet, Publish) and packet.qos:
                        kind = Puback if packet.qos == 1 else Pubrec
                        client.send(kind(packet.packet_id))
                    elif isinstance(packet, Pubrel):
                        client.send(Pubcomp(packet.packet_id))
                    elif isinstance(packet, Pubrec):
                        client.send(Pubrel(packet.packet_id))
        disk.commit()
        with disk.crash() as other:
            assert state_of(other) == state_of(disk)
            other.commit()
            with other.crash() as third:
                assert state_of(third) == state_of(disk)
                orphans = "SELECT * FROM messages WHERE id NOT IN (SELECT message FROM deliveries)"
                assert third.rows(orphans) == []


# The file itself.


def test_the_files_belong_to_the_broker_alone(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "c")
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {0o600}
        assert len(list(path.parent.iterdir())) == 4
    assert sorted(file.name for file in path.parent.iterdir()) == ["mqttd.db", "mqttd.db.lock"]


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("os", 1), ("none", 0)])
def test_a_level_of_durability_is_a_level_of_syncing(
    path: Path, durability: str, synchronous: int
) -> None:
    with Disk(path, durability=durability) as disk:
        assert disk.store._db is not None
        assert disk.store._db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert disk.store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert disk.store.behind is (durability == "none")


def contents(path: Path) -> dict[str, bytes]:
    """What holds state: not the lock, nor SQLite's shared memory, nor an empty log."""
    files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
    return {file.name: file.read_bytes() for file in files if file.stat().st_size or file == path}


def refused(path: Path, reason: str) -> None:
    """A start on this file fails, says why, and changes nothing."""
    before = contents(path)
    with pytest.raises(StoreError, match=reason) as caught, Disk(path):
        pass
    assert str(path) in str(caught.value)
    assert contents(path) == before


def test_a_second_broker_on_the_same_file_is_refused(path: Path) -> None:
    with Disk(path):
        refused(path, f"another broker uses this file .process {os.getpid()}")
    with Disk(path):
        pass


def filled(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        source = disk.client("source")
        for number in range(200):
            source.publish("a", b"%d" % number * 50, qos=1)
        disk.commit()


def test_an_empty_file_is_no_state(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    refused(path, "is empty")


def test_another_kind_of_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"listeners:\n  - name: tcp\n" * 100)
    refused(path, "is not a database")


def test_the_database_of_something_else(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE meta (key TEXT, value TEXT)")
    refused(path, "is not a database of mqttd")


def test_a_database_of_a_newer_version(path: Path) -> None:
    filled(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE meta SET value = 999 WHERE key = 'schema'")
    refused(path, "newer mqttd .schema 999, this one knows")


@pytest.mark.parametrize("keep", [100, 4096, 10_000])
def test_a_file_that_was_cut_short(path: Path, keep: int) -> None:
    filled(path)
    os.truncate(path, keep)
    refused(path, "damaged")


@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_page_full_of_nonsense(path: Path, page: int) -> None:
    filled(path)
    with path.open("r+b") as file:
        pages = path.stat().st_size // 4096
        file.seek(4096 * (pages - page))
        file.write(b"\xa5" * 4096)
    refused(path, "damaged")


def test_a_delivery_without_its_message(path: Path) -> None:
    """In a queue it is found when its page is wanted: a bug, counted, and the rest goes on."""
    filled(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM messages WHERE id = 7")
    with Disk(path) as disk:
        client = disk.client("away", clean=False, expiry=3600)
        disk.commit()
        assert payloads(client) == [b"%d" % number * 50 for number in range(200) if number != 6]
        disk.commit()
        counters = disk.broker.counters
        assert counters.bugs == 1
        assert counters.dropped == {"lost_by_store": 1}
        assert disk.events("bug") == ["a queue lost rows"]
        assert disk.broker.balance() == (0, 0)
        assert not disk.broker.context.tails


def test_a_sent_delivery_without_its_message(path: Path) -> None:
    """A window is read at the start, and so refused like any other damage."""
    with Disk(path) as disk:
        client = disk.client("c", expiry=3600, auto_ack=False)
        subscribe(disk, client, "a")
        disk.client("source").publish("a", b"1", qos=1)
        disk.commit()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM messages")
    refused(path, "is damaged: delivery 1 has lost its message")


def test_a_log_without_its_database(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "c")
        place = path.parent / "other"
        place.mkdir()
        shutil.copy(f"{path}-wal", place)
        refused(place / path.name, "is missing, but")
        assert not (place / path.name).exists()


def test_a_torn_log_loses_its_end_and_nothing_else(path: Path) -> None:
    """What a power cut leaves of a commit that was never reported."""
    with Disk(path) as disk:
        away(disk, "away", "a")
        wal = Path(f"{path}-wal")
        whole = wal.stat().st_size
        disk.client("source").publish("a", b"x" * 20_000, qos=1)
        disk.commit()
        place = path.parent / "torn"
        for cut in (1, 512, 4096, wal.stat().st_size - whole - 1):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            shutil.copy(path, place)
            shutil.copy(wal, place)
            os.truncate(place / wal.name, wal.stat().st_size - cut)
            with Disk(place / path.name) as other:
                assert other.broker.balance() == (0, 0)
                assert list(other.broker.sessions["away"].subscriptions) == ["a"]


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't be used"), Disk(tmp_path / "file" / "db"):
        pass
    with pytest.raises(StoreError, match="can't be used"), Disk(tmp_path):
        pass


def test_a_start_that_was_interrupted_begins_anew(path: Path) -> None:
    path.parent.mkdir()
    path.with_name(path.name + ".new").write_bytes(b"half")
    with Disk(path) as disk:
        away(disk, "c")
    assert not path.with_name(path.name + ".new").exists()


# Failing to write.


def test_a_batch_that_finds_no_room_is_tried_again_as_it_is(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        limited(disk, 4)
        source = disk.client("source")
        source.publish("a", b"x" * 100_000, qos=1)
        batch = disk.broker.take_batch()
        assert batch is not None
        with pytest.raises(StoreFull, match="no room left on the disk"):
            disk.write(batch)
        with pytest.raises(StoreFull, match="no room left on the disk"):
            disk.retry()
        source.expect_nothing()
        with disk.crash() as other:
            assert other.broker.balance() == (0, 0)
        limited(disk, 10_000)
        disk.retry()
        disk.broker.committed(batch.seq, disk.now)
        disk.flush()
        assert source.expect(Puback).reason == 0
        with disk.crash() as other:
            assert other.broker.balance() == (1, 0)


def test_after_any_other_failure_nothing_is_written_any_more(path: Path) -> None:
    with Disk(path) as disk:
        away(disk, "away", "a")
        assert disk.store._db is not None
        disk.store._db.execute("PRAGMA query_only = ON")
        source = disk.client("source")
        source.publish("a", b"1", qos=1)
        with pytest.raises(StoreError, match="can't be written"):
            disk.commit()
        disk.store._db.execute("PRAGMA query_only = OFF")
        source.publish("a", b"2", qos=1)
        with pytest.raises(StoreError, match="can't be written"):
            disk.commit()
        with pytest.raises(StoreError, match="can't be written"):
            disk.tidy()
        with pytest.raises(StoreError, match="can't be written"):
            disk.read([])
        source.expect_nothing()
        with disk.crash() as other:
            assert other.broker.balance() == (0, 0)


def test_a_migration_is_all_or_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    good = ("ALTER TABLE sessions ADD COLUMN note TEXT",)
    bad = ("CREATE TABLE more (x INTEGER) STRICT", "CREATE TABLE more (x INTEGER) STRICT")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        before, steps = schema.VERSION, schema.STEPS
        monkeypatch.setattr(schema, "STEPS", (*steps, good, bad))
        monkeypatch.setattr(schema, "VERSION", before + 2)
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(db)
        assert schema.version_of(db) == before
        monkeypatch.setattr(schema, "STEPS", (*steps, good, ()))
        schema.migrate(db)
        assert schema.version_of(db) == before + 2
        db.execute("SELECT note FROM sessions")
