"""`mqttd db backup`: what the copy holds, what it never replaces, what a failure leaves."""

import contextlib
import errno
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mqttd.store import admin, schema
from mqttd.store import backup as copying
from mqttd.store.admin import Damaged, Unusable
from mqttd.store.backup import backup
from tests.store.database import (
    ROWS,
    create,
    damage,
    fail_with,
    findings,
    live,
    set_version,
)
from tests.store.disk import Disk, away, payloads, state_of, subscribe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return create(tmp_path / "mqttd.db", *ROWS)


def rows(path: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_a_backup(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    document = backup(path, target)
    assert document["schema"] == "mqttd.db.backup/1"
    assert (document["file"], document["target"]) == (str(path), str(target))
    assert document["bytes"] == target.stat().st_size == path.stat().st_size
    assert document["schema_version"] == schema.VERSION
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy.db", "mqttd.db"]
    with (
        contextlib.closing(sqlite3.connect(path)) as a,
        contextlib.closing(sqlite3.connect(target)) as b,
    ):
        assert list(a.iterdump()) == list(b.iterdump())
        for pragma in ("journal_mode", "auto_vacuum", "application_id", "page_size"):
            assert (
                a.execute(f"PRAGMA {pragma}").fetchone() == b.execute(f"PRAGMA {pragma}").fetchone()
            )
    assert findings(target) == {}


def test_a_backup_of_a_database_that_changes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit between any two slices; what is copied is the instant of the first."""
    monkeypatch.setattr(copying, "_SLICE_PAGES", 1)
    target = tmp_path / "copy.db"
    with live(path) as db:
        db.execute(f"INSERT INTO retained VALUES ('big', zeroblob({1 << 18}), 1, x'', NULL, '')")
        expected = rows(path, "SELECT topic, length(payload) FROM retained ORDER BY topic")
        steps: list[tuple[int, int]] = []

        def commit(step: str, done: int, total: int) -> None:
            if step == "copying":
                steps.append((done, total))
                db.execute("UPDATE retained SET payload = randomblob(99999)")
                db.execute("INSERT INTO retained VALUES (?, x'', 1, x'', NULL, '')", (f"n{done}",))

        backup(path, target, progress=commit)
        pages = steps[0][1]
        assert pages > 60
        assert [done for done, _ in steps] == list(range(1, pages + 1))
        assert rows(target, "SELECT topic, length(payload) FROM retained ORDER BY topic") == (
            expected
        )
        assert len(rows(path, "SELECT 1 FROM retained")) == len(expected) + pages
    assert findings(target) == {}


def test_a_target_that_is_there(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("mine")
    with pytest.raises(Unusable, match="is there already; choose another name, or say --force"):
        backup(path, target)
    assert target.read_text() == "mine"
    backup(path, target, force=True)
    assert findings(target) == {}
    backup(path, target, force=True)


def test_a_target_that_comes_meanwhile(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"

    def interfere(step: str, done: int, total: int) -> None:
        target.write_text("mine")

    with pytest.raises(Unusable, match="is there already"):
        backup(path, target, progress=interfere)
    assert target.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy.db", "mqttd.db"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "is a directory"),
        ("none/copy.db", "there is no directory"),
        ("mqttd.db", "belongs to the database itself"),
        ("mqttd.db-wal", "belongs to the database itself"),
        ("mqttd.db-shm", "belongs to the database itself"),
        ("mqttd.db.lock", "belongs to the database itself"),
        ("link.db", "belongs to the database itself"),
        ("logged.db", "would take for the log of the backup"),
        ("fifo", "is not a file"),
        ("used.db", r"a broker uses it \(process 4711\)"),
    ],
)
def test_a_target_that_must_not_be(name: str, text: str, path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("mqttd.db")
    (tmp_path / "logged.db-wal").write_text("frames")
    os.mkfifo(tmp_path / "fifo")
    create(tmp_path / "used.db")
    with live(tmp_path / "used.db"), pytest.raises(Unusable, match=text):
        backup(path, tmp_path / name, force=True)
    assert findings(path) == {}
    assert not list(tmp_path.rglob("*.part"))


def test_a_backup_of_a_damaged_database(path: Path, tmp_path: Path) -> None:
    damage(path)
    with pytest.raises(Damaged, match=r"is damaged .*; no backup was made"):
        backup(path, tmp_path / "copy.db")
    assert [each.name for each in tmp_path.iterdir()] == ["mqttd.db"]


def test_a_backup_of_a_newer_database(path: Path, tmp_path: Path) -> None:
    set_version(path, schema.VERSION + 1)
    assert backup(path, tmp_path / "copy.db")["schema_version"] == schema.VERSION + 1


def test_a_disk_that_is_too_small(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = 2  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    with pytest.raises(Unusable, match="no room left on the disk: the backup takes"):
        backup(path, tmp_path / "copy.db")
    assert [each.name for each in tmp_path.iterdir()] == ["mqttd.db"]


def test_a_disk_that_fails_at_the_end(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(Unusable, match=r"copy\.db: No space left on device; no backup was made"):
        backup(path, tmp_path / "copy.db")
    assert [each.name for each in tmp_path.iterdir()] == ["mqttd.db"]


def test_a_disk_that_fails_after_the_end(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fail_with(errno.EIO)()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Unusable, match="it is there, but perhaps not yet on the disk"):
        backup(path, tmp_path / "copy.db")
    assert findings(tmp_path / "copy.db") == {}


def test_a_disk_that_fails_midway(path: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"INSERT INTO retained VALUES ('big', zeroblob({1 << 21}), 1, x'', NULL, '')")
    program = (
        "import resource, sys; from mqttd import cli;"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000));"
        " sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["db", "backup", str(path), str(tmp_path / "copy.db")]
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mqttd: {tmp_path / 'copy.db'}: ")
    assert "no backup was made" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["mqttd.db"]


def test_a_backup_that_is_stopped(path: Path, tmp_path: Path) -> None:
    def stop(step: str, done: int, total: int) -> None:
        assert [each for each in tmp_path.iterdir() if each.name.startswith("copy.db.")]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup(path, tmp_path / "copy.db", progress=stop)
    assert [each.name for each in tmp_path.iterdir()] == ["mqttd.db"]


def test_a_broker_starts_on_a_backup(tmp_path: Path) -> None:
    """With all that was acknowledged when it began, and nothing that came later."""
    path = tmp_path / "kept" / "mqttd.db"
    target = tmp_path / "copy" / "mqttd.db"
    target.parent.mkdir()
    with Disk(path) as disk:
        away(disk, "deep", "a/+", qos=2)
        away(disk, "member", "$share/g/a/#")
        slow = disk.client("slow", expiry=3600, auto_ack=False)
        subscribe(disk, slow, "a/b", 2)
        source = disk.client("source", expiry=60)
        for number in range(40):
            source.publish("a/b", b"%d" % number, qos=1 + number % 2)
        source.publish("r", b"kept", qos=1, retain=True)
        disk.commit()
        expected = state_of(disk)

        def publish(step: str, done: int, total: int) -> None:
            source.publish("a/b", b"later", qos=1)
            source.publish("r", b"later", qos=1, retain=True)
            disk.commit()

        document = admin.check(path)
        assert (document["verdict"], document["in_use_by"]) == ("good", os.getpid())
        backup(path, target, progress=publish)
        assert state_of(disk) != expected
        figures = admin.stats(target, now=disk.wall + 10)
        assert [queue["client"] or queue["share"] for queue in figures["queues"]] == [
            "deep",
            "slow",
            "$share/g/a/#",
        ]
        assert [queue["oldest_age_s"] for queue in figures["queues"]] == [10.0] * 3
        assert figures["messages"]["count"] == 40
        assert [figures["deliveries"][key] for key in ("queued", "sent", "released")] == [80, 40, 0]
        with Disk(target, disk.wall) as other:
            assert state_of(other) == expected
            # What was given to messages that came later is given to no other.
            assert other.broker.journal.next_serial > disk.broker.journal.next_serial
            client = other.client("deep", clean=False, expiry=3600)
            other.commit()
            assert payloads(client) == [b"%d" % number for number in range(40)]
            other.commit()
            assert findings(target) == {}
    assert findings(path) == {}
