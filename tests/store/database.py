"""Databases made by hand, row by row, for the tests of `mqttd db`; and how they go wrong."""

import contextlib
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mqttd.store import admin, schema

NOW = 1_700_000_000.0

# Two sessions and a group's own queue; message 1 has one delivery, 2 has two, 3 waits in the group.
ROWS = (
    f"INSERT INTO sessions VALUES ('a', 1, 'user', 3600, 0, {NOW + 60}, NULL)",
    "INSERT INTO sessions VALUES ('b', 2, NULL, 3600, 1, NULL, NULL)",
    f"INSERT INTO sessions VALUES ('c', 3, NULL, 99999999, 0, {NOW + 99999999}, {NOW})",
    "INSERT INTO shares VALUES (9, 'g', 't/#')",
    "INSERT INTO subscriptions VALUES (1, 'a', 't/1', 1, 0, 0, 0, 0)",
    "INSERT INTO subscriptions VALUES (2, 'b', '$share/g/t/#', 2, 0, 0, 0, 7)",
    "INSERT INTO wills VALUES ('c', 'w', x'00', 1, 0, 5, 0, x'')",
    "INSERT INTO inbound VALUES ('b', 65535)",
    "INSERT INTO retained VALUES ('r', x'0102', 1, x'', 0, 'a')",
    "INSERT INTO plugin_rows VALUES ('bans', '10.0.0.1', x'01')",
    "INSERT INTO plugin_rows VALUES ('delayed', '1', x'0203'), ('delayed', '2', x'04')",
    f"INSERT INTO messages VALUES (1, 't/1', zeroblob(10), 1, 0, x'', 0, {NOW - 100}, 'p')",
    f"INSERT INTO messages VALUES (2, 't/2', zeroblob(20), 2, 0, x'', 0, {NOW - 50}, 'p')",
    f"INSERT INTO messages VALUES (3, 't/3', zeroblob(40), 1, 0, x'', 0, {NOW - 10}, '')",
    "INSERT INTO refs VALUES (2, 2)",
    "INSERT INTO deliveries VALUES (-4, 1, 1, 0, 0, 0, 0, 1, 0, x'')",
    "INSERT INTO deliveries VALUES (5, 1, 2, 1, 0, 7, 2, 2, 0, x'')",
    "INSERT INTO deliveries VALUES (6, 2, 2, 1, 9, 7, 1, 1, 0, x'')",
    "INSERT INTO deliveries VALUES (7, 9, 3, 0, 0, 0, 0, 1, 0, x'')",
)


def create(path: Path, *statements: str) -> Path:
    """A database as a broker makes it, closed."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        schema.migrate(db)
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        for statement in statements:
            db.execute(statement)
    return path


@contextlib.contextmanager
def live(path: Path) -> Iterator[sqlite3.Connection]:
    """A broker: the lock, and a connection whose commits are in the log."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.write("4711\n")
        lock.flush()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA wal_autocheckpoint = 0")
            yield db


def contents(path: Path) -> dict[str, bytes]:
    """All files in its directory; what SQLite keeps in shared memory is nobody's."""
    return {
        each.name: each.read_bytes()
        for each in path.parent.iterdir()
        if not each.name.endswith("-shm")
    }


def findings(path: Path) -> dict[str, tuple[int, str]]:
    document = admin.check(path)
    assert (document["verdict"] == "bad") is bool(document["findings"])
    return {each["check"]: (each["count"], each["example"]) for each in document["findings"]}


def damage(path: Path) -> None:
    """Overwrites the deliveries."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'deliveries'"
        page = db.execute(query).fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def set_version(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (version,))


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextlib.contextmanager
def nobody() -> Iterator[Path]:
    """A directory in which the test may read but not write, whoever runs it."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    user = os.geteuid()
    try:
        yield place
    finally:
        os.seteuid(user)
        place.chmod(0o700)
        for each in place.iterdir():
            each.unlink()
        place.rmdir()


def to_nobody(place: Path) -> None:
    for each in place.iterdir():
        each.chmod(0o444)
    place.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
