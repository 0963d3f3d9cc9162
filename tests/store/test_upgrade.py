"""A database of an older version becomes one of this version, and nothing in it is lost.

`v1/` holds what kill -9 left of a broker of schema version 1: the file, and a log with commits that
were not copied into it yet. It was made by that broker's own code, as of commit a56336a, and is
never made again. `v2/` is the same of version 2, as of commit e05c628: messages without their
publisher.
"""

import contextlib
import gzip
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttd.core.packets import Pubcomp, Pubrel
from mqttd.core.settings import NEVER
from mqttd.store import admin, schema, sqlite
from mqttd.store.admin import Unusable
from mqttd.store.backup import backup
from mqttd.store.base import StoreError
from tests.store.database import contents
from tests.store.disk import EMPTY, Disk, assert_sound, payloads, rows_in, state_of, subscribe

TABLES_OF_1 = (
    *("sessions", "subscriptions", "wills", "inbound", "messages", "refs", "deliveries"),
    *("shares", "retained"),
)


def unpacked(name: str, place: Path) -> Path:
    """A file of an old version with its log."""
    path = place / "mqttd.db"
    place.mkdir()
    for packed in (Path(__file__).parent / name).iterdir():
        (place / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return unpacked("v1", tmp_path / "old")


def rows_of(path: Path) -> dict[str, list[Any]]:
    """Every row of the tables that version 1 has, in the columns that it has."""
    found: dict[str, list[Any]] = {}
    with contextlib.closing(sqlite3.connect(path)) as db:
        for name in TABLES_OF_1:
            columns = "*"
            if name == "messages":
                columns = "id, topic, payload, qos, retain, properties, expires_at, stored_at"
            found[name] = db.execute(f"SELECT {columns} FROM {name}").fetchall()
    return found


def version_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return schema.version_of(db)


def copy_of(path: Path) -> Path:
    """The same files elsewhere: to look at them there changes nothing here."""
    place = path.parent.with_name("copy")
    place.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        (place / f"{path.name}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    return place / path.name


def test_the_file_is_of_version_1_and_holds_something_everywhere(old: Path) -> None:
    copy = copy_of(old)
    assert version_of(copy) == 1
    assert all(rows_of(copy).values())


def test_no_row_is_lost_or_changed(old: Path) -> None:
    before = rows_of(copy_of(old))
    with Disk(old):  # which writes nothing else before its first commit
        pass
    assert version_of(old) == schema.VERSION
    assert rows_of(old) == before
    document = admin.check(old)  # the tables are those of a new file, too
    assert (document["verdict"], document["findings"], document["notes"]) == ("good", [], [])
    assert document["schema_version"] == schema.VERSION


def test_everything_in_it_is_served(old: Path) -> None:
    queued = [b"queued 0", b"queued 1", b"queued 2", b"queued 3", b"in the log"]
    with Disk(old) as disk:
        assert len(disk.broker.sessions) == 4
        assert disk.broker.balance() == (11, 1)
        away = disk.client("away", clean=False, expiry=3600)
        disk.commit()
        assert payloads(away) == queued
        member = disk.client("member", clean=False, expiry=3600)
        disk.commit()
        assert payloads(member) == queued
        window = disk.client("window", clean=False, expiry=3600)
        disk.commit()
        sent, begun = window.messages()
        assert (sent.payload, sent.qos, sent.packet_id, sent.dup) == (b"sent", 1, 1, True)
        assert (begun.payload, begun.qos) == (b"begun", 2)
        subscribe(disk, away, "r/+")
        assert sorted(payloads(away)) == [b"in the log", b"kept"]
        subscribe(disk, away, "w")
        disk.advance(31.0)
        assert payloads(away) == [b"gone"]  # the will of a client that was there when it broke
        source = disk.client("source", clean=False, expiry=NEVER)
        source.send(Pubrel(7))
        disk.commit()
        assert source.take_first(Pubcomp).reason == 0
        assert rows_in(disk) == EMPTY
        assert_sound(disk)


def test_it_takes_rows_of_plugins(old: Path) -> None:
    with Disk(old) as disk:
        assert disk.broker.tables.rows == {}
        disk.broker.tables.set("bans", "client", b"1")
        disk.commit()
    with Disk(old) as disk:
        assert disk.broker.tables.rows == {"bans": {"client": b"1"}}
        assert len(disk.broker.sessions) == 4


class Watched:
    """The statements of a step, and a look after each."""

    def __init__(self, statements: tuple[str, ...], look: Callable[[], None]) -> None:
        self._statements = statements
        self._look = look

    def __iter__(self) -> Iterator[str]:
        for statement in self._statements:
            self._look()
            yield statement
        self._look()


def test_killed_in_the_middle_it_is_what_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(copy_of(old))
    seen: list[int] = []

    def look() -> None:
        copy = copy_of(old)
        seen.append(version_of(copy))
        assert rows_of(copy) == before
        names = "SELECT name FROM sqlite_schema WHERE name = 'plugin_rows'"
        with contextlib.closing(sqlite3.connect(copy)) as db:
            assert db.execute(names).fetchall() == []

    steps = (schema.STEPS[0], *(Watched(each, look) for each in schema.STEPS[1:]))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", steps)
        with Disk(old):
            assert seen == [1] * (len(schema.v2.STATEMENTS) + len(schema.v3.STATEMENTS) + 2)
            done = copy_of(old)
    assert version_of(done) == schema.VERSION
    assert rows_of(done) == before


def test_without_room_it_stays_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(copy_of(old))
    connect = sqlite._connect

    def connect_to_a_full_disk(path: Path, synchronous: str) -> sqlite3.Connection:
        db = connect(path, synchronous)
        db.execute("PRAGMA max_page_count = 1")  # which means: no more than there are
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_connect", connect_to_a_full_disk)
        with pytest.raises(StoreError, match="no room left on the disk"), Disk(old):
            pass
    assert version_of(old) == 1
    assert rows_of(old) == before
    with Disk(old) as disk:
        assert disk.broker.balance() == (11, 1)


def test_before_the_broker_has_seen_it(old: Path, tmp_path: Path) -> None:
    """Looking at it changes nothing, and a backup is the way back."""
    before = contents(old)
    document = admin.check(old)
    assert document["verdict"] == "good"
    assert document["notes"] == [
        f"it will be migrated from schema 1 to {schema.VERSION} at the next start;"
        " until then only its pages can be checked"
    ]
    with pytest.raises(Unusable, match="has schema 1, and only 3 can be counted; the next start"):
        admin.stats(old)
    assert backup(old, tmp_path / "backup.db")["schema_version"] == 1
    assert contents(old) == before
    assert rows_of(tmp_path / "backup.db") == rows_of(copy_of(old))
    assert version_of(tmp_path / "backup.db") == 1
    with Disk(tmp_path / "backup.db") as copy, Disk(old) as disk:
        assert state_of(copy) == state_of(disk)


def test_a_file_of_version_2_learns_who_published_what_comes_from_now_on(tmp_path: Path) -> None:
    old = unpacked("v2", tmp_path / "old")
    assert version_of(copy_of(old)) == 2
    before = rows_of(copy_of(old))
    with Disk(old) as disk:
        assert disk.broker.tables.rows == {"bans": {"client": b"1"}}
        disk.client("later").publish("a/1", b"new", qos=1)
        disk.commit()
        with disk.crash() as other:
            found = other.queued(other.broker.sessions["away"])
            told = [(each.message.payload, each.message.origin) for each in found]
            assert told == [(b"queued", ""), (b"new", "later")]
            assert_sound(other)
    after = rows_of(old)
    assert version_of(old) == schema.VERSION
    for name in ("messages", "deliveries", "retained", "subscriptions"):
        assert set(before[name]) <= set(after[name])
