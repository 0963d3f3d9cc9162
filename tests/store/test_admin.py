"""What `mqttd db check` and `mqttd db stats` find, and that looking changes nothing."""

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mqttd.store import admin, schema, view
from mqttd.store.admin import Damaged, Unusable
from mqttd.store.backup import backup
from tests.store.database import (
    NOW,
    ROWS,
    contents,
    create,
    damage,
    fail_with,
    findings,
    live,
    nobody,
    set_version,
    to_nobody,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "mqttd.db", *ROWS)


# Check.


def test_a_good_database(path: Path) -> None:
    document = admin.check(path)
    assert document == {
        "schema": "mqttd.db.check/1",
        "file": str(path),
        "in_use": False,
        "in_use_by": None,
        "file_bytes": path.stat().st_size,
        "log_bytes": 0,
        "schema_version": schema.VERSION,
        "schema_version_known": schema.VERSION,
        "checks": 2 + len(admin._INVARIANTS),
        "findings": [],
        "notes": [],
        "verdict": "good",
    }


def test_an_empty_database(tmp_path: Path) -> None:
    path = create(tmp_path / "mqttd.db")
    assert findings(path) == {}
    document = admin.stats(path)
    assert document["queues"] == []
    assert document["plugin_rows"] == {"tables": 0, "count": 0, "bytes": 0}


BROKEN = {
    "delivery-without-message": ("DELETE FROM messages WHERE id = 2", 2, "message 2"),
    "message-without-delivery": (
        "INSERT INTO messages VALUES (7, 't', x'', 1, 0, x'', 0, 0, '')",
        1,
        "message 7",
    ),
    "shared-flag": (
        "UPDATE deliveries SET shared = 0 WHERE serial = 5",
        1,
        "message 2: 2 deliveries",
    ),
    "refs-count": ("UPDATE refs SET left = 3", 1, "message 2: 2 deliveries, refs has 3"),
    "refs-unused": ("INSERT INTO refs VALUES (1, 1)", 1, "message 1"),
    "number-twice": ("INSERT INTO shares VALUES (3, 'h', 'x')", 1, "number 3, client c"),
    "packet-id-range": (
        "UPDATE deliveries SET packet_id = 65536 WHERE owner = 2",
        1,
        "owner 2, serial 6: 65536",
    ),
    "packet-id-twice": (
        "UPDATE deliveries SET packet_id = 7, state = 1 WHERE owner = 1",
        1,
        "owner 1, packet id 7",
    ),
    "delivery-state": (
        "UPDATE deliveries SET state = 3 WHERE owner = 2",
        1,
        "owner 2, serial 6: state 3, QoS 1",
    ),
    "delivery-unsent": (
        "UPDATE deliveries SET packet_id = 0 WHERE owner = 2",
        1,
        "owner 2, serial 6: state 1, packet id 0",
    ),
    "share-sent": (
        "UPDATE deliveries SET packet_id = 3 WHERE owner = 9",
        1,
        "owner 9, serial 7: packet id 3",
    ),
    "subscription-without-session": (
        "UPDATE subscriptions SET client = 'x' WHERE id = 1",
        1,
        "client x, filter t/1",
    ),
    "will-without-session": ("UPDATE wills SET client = 'x'", 1, "client x"),
    "inbound-without-session": ("UPDATE inbound SET client = 'x'", 1, "client x, packet id 65535"),
    "inbound-packet-id": ("UPDATE inbound SET packet_id = 0", 1, "client b: 0"),
}


def test_each_invariant_is_broken_once() -> None:
    assert list(BROKEN) == [name for name, *_ in admin._INVARIANTS]


def test_each_check_is_described(root: Path) -> None:
    page = (root / "docs" / "reference" / "command-line.md").read_text()
    table = page.partition("### What `check` finds")[2]
    names = [
        name
        for cell in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
        for name in re.findall(r"`([\w-]+)`", cell)
    ]
    assert names == ["pages", "tables", *BROKEN]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_invariant(name: str, tmp_path: Path) -> None:
    statement, count, example = BROKEN[name]
    path = create(tmp_path / "mqttd.db", *ROWS, statement)
    (found,) = findings(path).items()
    assert found[0] == name
    assert found[1][0] == count
    assert found[1][1].startswith(example)


@pytest.mark.parametrize(
    ("statement", "example"),
    [
        ("UPDATE refs SET left = 1", "message 2: 2 deliveries, refs has 1"),
        ("DELETE FROM refs", "message 2: 2 deliveries, refs has none"),
    ],
)
def test_a_wrong_count(statement: str, example: str, tmp_path: Path) -> None:
    path = create(tmp_path / "mqttd.db", *ROWS, statement)
    assert findings(path) == {"refs-count": (1, example)}


@pytest.mark.parametrize(
    "statements",
    [
        # The last of several: its mark and its count stay.
        ("DELETE FROM deliveries WHERE owner = 2", "UPDATE refs SET left = 1"),
        # A session that has ended; its queue goes piece by piece.
        (
            "DELETE FROM sessions WHERE client = 'a'",
            "DELETE FROM subscriptions WHERE client = 'a'",
        ),
        # Not sent yet, but with another state in the group's own queue: it came back from a member.
        ("UPDATE deliveries SET state = 1 WHERE owner = 9",),
    ],
)
def test_what_looks_odd_and_is_good(statements: tuple[str, ...], tmp_path: Path) -> None:
    assert findings(create(tmp_path / "mqttd.db", *ROWS, *statements)) == {}


def test_several_findings_at_once(tmp_path: Path) -> None:
    path = create(tmp_path / "mqttd.db", *ROWS, "DELETE FROM sessions", "DELETE FROM refs")
    assert findings(path) == {
        "refs-count": (1, "message 2: 2 deliveries, refs has none"),
        "subscription-without-session": (2, "client a, filter t/1"),
        "will-without-session": (1, "client c"),
        "inbound-without-session": (1, "client b, packet id 65535"),
    }


def test_tables_that_are_not_those_of_the_version(tmp_path: Path) -> None:
    path = create(
        tmp_path / "mqttd.db",
        "DROP TABLE shares",
        "DROP TABLE plugin_rows",
        "ALTER TABLE retained ADD COLUMN more TEXT",
        "CREATE TABLE mine (a)",
    )
    count, example = findings(path)["tables"]
    assert count == 3
    assert example == "table shares is missing"
    with pytest.raises(Damaged, match="table shares is missing"):
        admin.stats(path)


def test_a_damaged_page(path: Path) -> None:
    damage(path)
    document = admin.check(path)
    assert document["verdict"] == "bad"
    (finding,) = document["findings"]
    assert finding["check"] == "pages"
    assert document["notes"] == ["the rows weren't looked at, since the file is damaged"]


def test_several_damages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(36)  # how many pages are free
        file.write(b"\0\0\0\x05")
    document = admin.check(path)
    (finding,) = document["findings"]
    assert (finding["check"], finding["count"]) == ("pages", 1)
    assert "reelist" in finding["example"]


def test_damage_that_sqlite_stumbles_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)  # the root of the schema
        file.write(b"\xa5" * 3000)
    document = admin.check(path)
    assert document["verdict"] == "bad"
    assert document["findings"][0]["check"] == "pages"
    assert "is damaged (SQLITE_CORRUPT" in document["findings"][0]["example"]
    with pytest.raises(Damaged, match="restore a backup"):
        admin.stats(path)


def test_a_newer_database(path: Path) -> None:
    set_version(path, schema.VERSION + 1)
    document = admin.check(path)
    assert document["verdict"] == "newer"
    assert document["findings"] == []
    (note,) = document["notes"]
    assert "written by a newer mqttd" in note
    with pytest.raises(Unusable, match="was written by a newer mqttd"):
        admin.stats(path)


def test_an_older_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    document = admin.check(path)
    assert document["verdict"] == "good"
    assert document["checks"] == 1
    (note,) = document["notes"]
    versions = f"from schema {schema.VERSION - 1} to {schema.VERSION}"
    assert f"will be migrated {versions} at the next start" in note
    with pytest.raises(Unusable, match="the next start of the broker migrates it"):
        admin.stats(path)


# What can't be used.


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE x (y)")


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda path: None, "can't be read (No such file or directory)"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.touch(), "is empty, not a database"),
        (lambda path: path.write_bytes(b"text\n" * 999), "is not a database, or its first page"),
        (foreign, "is not a database of mqttd"),
    ],
)
def test_what_is_no_database(prepare: Callable[[Path], None], text: str, tmp_path: Path) -> None:
    path = tmp_path / "what.db"
    prepare(path)
    before = [each.name for each in tmp_path.iterdir()]
    calls: list[Callable[[], object]] = [
        lambda: admin.check(path),
        lambda: admin.stats(path),
        lambda: backup(path, tmp_path / "copy.db"),
    ]
    for call in calls:
        with pytest.raises(Unusable, match=re.escape(f"{path}: {text}")) as caught:
            call()
        assert not isinstance(caught.value, Damaged)
    assert [each.name for each in tmp_path.iterdir()] == before


def test_a_file_of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(Unusable, match="run this as the broker's user"):
        admin.check(path)


def test_an_old_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(Unusable, match=r"is too old, 3\.37\.0 is needed"):
        admin.stats(path)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (sqlite3.SQLITE_BUSY, "is locked by another process"),
        (sqlite3.SQLITE_IOERR, "input/output error"),
        (sqlite3.SQLITE_NOMEM, "can't be used"),
        (sqlite3.SQLITE_CANTOPEN, "can't be used"),
    ],
)
def test_other_failures(code: int, text: str, path: Path) -> None:
    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("what SQLite says")
        error.sqlite_errorcode = code
        error.sqlite_errorname = "SQLITE_X"
        raise error

    with pytest.raises(Unusable, match=rf"{text} \(SQLITE_X: what SQLite says\)"):
        admin.reading(path, fail)


def test_a_directory_that_cannot_be_written() -> None:
    """On read-only media, or with another user's file: no log is needed, none is made."""
    with nobody() as place:
        path = create(place / "mqttd.db", *ROWS)
        to_nobody(place)
        assert findings(path) == {}
        assert admin.stats(path)["messages"]["count"] == 3
        with pytest.raises(Unusable, match=r"copy\.db: Permission denied; no backup was made"):
            backup(path, place / "copy.db")


def test_a_log_that_cannot_be_read() -> None:
    with nobody() as place:
        path = create(place / "kept.db", *ROWS)
        with live(path) as db:
            db.execute("DELETE FROM retained")
            for suffix in ("", "-wal"):
                (place / f"mqttd.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
        to_nobody(place)
        with pytest.raises(Unusable, match="run this as the broker's user, or copy"):
            admin.check(place / "mqttd.db")


# Looking changes nothing, and works beside a broker.


def test_nothing_is_changed(path: Path, tmp_path: Path) -> None:
    before = contents(path)
    modified = path.stat().st_mtime_ns
    with tempfile.TemporaryDirectory() as elsewhere:
        admin.check(path)
        admin.stats(path)
        backup(path, Path(elsewhere) / "copy.db")
    assert contents(path) == before
    assert path.stat().st_mtime_ns == modified
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mqttd.db"]


def test_beside_a_broker(path: Path, tmp_path: Path) -> None:
    with live(path) as db:
        db.execute("DELETE FROM retained")
        before = contents(path)
        with tempfile.TemporaryDirectory() as elsewhere:
            document = admin.check(path)
            assert admin.stats(path)["retained"]["count"] == 0
            backup(path, Path(elsewhere) / "copy.db")
        assert document["verdict"] == "good"
        assert (document["in_use"], document["in_use_by"]) == (True, 4711)
        assert document["log_bytes"] > 0
        assert contents(path) == before
        # And the broker goes on: nothing holds its log or its lock.
        db.execute("DELETE FROM wills")
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    assert admin.check(path)["in_use"] is False


def test_a_log_that_a_crash_left(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "crashed"
    place.mkdir()
    with live(path) as db:
        db.execute("DELETE FROM retained")
        for suffix in ("", "-wal", ".lock"):
            (place / f"mqttd.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    before = contents(place / "mqttd.db")
    document = admin.stats(place / "mqttd.db")
    assert document["retained"]["count"] == 0
    assert document["in_use"] is False  # the process in the lock file has gone
    assert contents(place / "mqttd.db") == before


def test_a_broker_that_comes_meanwhile(path: Path) -> None:
    """What was read without locks is thrown away, and read again with them."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:

        def look(db: sqlite3.Connection) -> int:
            found.append(db.execute("SELECT count(*) FROM retained").fetchone()[0])
            if len(found) == 1:
                stack.enter_context(live(path)).execute("DELETE FROM retained")
                raise sqlite3.DatabaseError("a page that changed under the reader")
            return found[-1]

        assert admin.reading(path, look) == 0
    assert found == [1, 0]


def test_a_failure_that_no_broker_caused(path: Path) -> None:
    calls: list[None] = []

    def fail(_: sqlite3.Connection) -> None:
        calls.append(None)
        raise sqlite3.DatabaseError("broken")

    with pytest.raises(Unusable, match="broken"):
        admin.reading(path, fail)
    assert len(calls) == 1


def test_what_is_read_is_one_instant(path: Path) -> None:
    with live(path) as db:

        def commit(step: str, done: int, total: int) -> None:
            if step == "rows":
                db.execute("DELETE FROM deliveries WHERE owner = 2")
                db.execute("DELETE FROM sessions")

        assert admin.check(path, commit)["verdict"] == "good"
    assert "refs-count" in findings(path)


def test_who_uses_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Path(f"{path}.lock")
    assert admin.use_of(path).document() == {"in_use": False, "in_use_by": None}
    assert not lock.exists()
    with live(path):
        assert admin.use_of(path).process == 4711
        lock.write_text("")
        assert admin.use_of(path).document() == {"in_use": True, "in_use_by": None}
    assert admin.use_of(path).taken is False
    monkeypatch.setattr(os, "open", fail_with(errno.EACCES))
    assert admin.use_of(path).taken is None


def test_a_lock_that_the_filesystem_does_not_know(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"{path}.lock").touch()
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.ENOLCK))
    assert admin.use_of(path).taken is None
    assert findings(path) == {}  # with SQLite's own locks, to be safe


# Stats.


def test_stats(path: Path) -> None:
    document = admin.stats(path, now=NOW)
    size = path.stat().st_size
    with contextlib.closing(sqlite3.connect(path)) as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
    assert document == {
        "schema": "mqttd.db.stats/1",
        "file": str(path),
        "at": NOW,
        "in_use": False,
        "in_use_by": None,
        "file_bytes": size,
        "log_bytes": 0,
        "schema_version": schema.VERSION,
        "page_bytes": size // pages,
        "pages": pages,
        "free_pages": free,
        "sessions": {"total": 3, "connected": 1, "expiring_soon": 1},
        "subscriptions": 2,
        "shared_groups": 1,
        "wills": 1,
        "inbound": 1,
        "retained": {"count": 1, "bytes": 2},
        "plugin_rows": {"tables": 2, "count": 3, "bytes": 4},
        "messages": {
            "count": 3,
            "bytes": 70,
            "oldest_stored_at": NOW - 100,
            "oldest_age_s": 100.0,
        },
        "deliveries": {"total": 4, "queued": 2, "sent": 1, "released": 1, "ended": 0},
        "queues": [
            {"client": "a", "share": None, "messages": 2, "bytes": 30, "oldest_age_s": 100.0},
            {"client": "b", "share": None, "messages": 1, "bytes": 20, "oldest_age_s": 50.0},
            {
                "client": None,
                "share": "$share/g/t/#",
                "messages": 1,
                "bytes": 40,
                "oldest_age_s": 10.0,
            },
        ],
    }


def test_the_deepest_queues(path: Path) -> None:
    for top, names in ((0, []), (1, ["a"]), (2, ["a", "b"]), (9, ["a", "b", None])):
        document = admin.stats(path, top, NOW)
        assert [queue["client"] for queue in document["queues"]] == names
        assert document["deliveries"]["total"] == 4


def test_what_is_being_deleted_is_no_queue(tmp_path: Path) -> None:
    path = create(
        tmp_path / "mqttd.db",
        *ROWS,
        "DELETE FROM sessions WHERE client = 'a'",
        "DELETE FROM subscriptions WHERE client = 'a'",
    )
    document = admin.check(path)
    assert document["verdict"] == "good"
    assert document["notes"] == [
        "2 deliveries are of sessions that have ended; the broker deletes them"
    ]
    document = admin.stats(path, now=NOW)
    assert document["deliveries"] == {
        "total": 2,
        "queued": 1,
        "sent": 1,
        "released": 0,
        "ended": 2,
    }
    assert [queue["client"] for queue in document["queues"]] == ["b", None]
    lines = view.stats_lines(document)
    assert [line.split() for line in lines if "ended" in line] == [
        ["of", "ended", "sessions", "2", "being", "deleted"]
    ]


def test_a_clock_that_was_set_back(path: Path) -> None:
    document = admin.stats(path, now=NOW - 1000)
    assert document["messages"]["oldest_age_s"] == 0.0
    assert document["queues"][0]["oldest_age_s"] == 0.0


def test_counting_walks_along_the_trees(path: Path) -> None:
    """A million deliveries are read once, and nothing is looked for row by row."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {admin._QUEUES}")]
    assert len([step for step in plan if step.startswith("SCAN deliveries")]) == 1
    assert [step for step in plan if "sqlite_autoindex_sessions_2 (number=?)" in step]
