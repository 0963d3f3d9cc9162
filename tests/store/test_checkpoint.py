"""The log and its way into the database: copied by a thread of its own while commits go on."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttd.store import sqlite
from mqttd.store.base import StoreError
from tests.store.disk import EMPTY, Disk, Receiver, assert_sound, away, fill, rows_in, state_of
from tests.store.lane import left_behind

EVERY = 256 << 10  # bytes of the log between two checkpoints
PATIENCE = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "mqttd.db"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_CHECKPOINT_BYTES", EVERY)


def log_of(path: Path) -> int:
    """Bytes of the log."""
    return Path(f"{path}-wal").stat().st_size


def copied(disk: Disk) -> None:
    """Wait for the copier, if it is at work."""
    copying = disk.store._copying
    if copying is not None:
        copying.result(PATIENCE)


def begin_copying(disk: Disk, number: int = 0) -> int:
    """Write until the copier has been started; returns the number behind the last written."""
    while disk.store._copying is None:
        fill(disk, "a", [number], size=20_000)
        number += 1
    return number


class Copying:
    """Stands where the log is copied: in the copier's thread it waits until told to go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.copies: list[str] = []  # the threads, in order
        self.error: Exception | None = None
        self._copy: Callable[[sqlite3.Connection], None] = sqlite._copy_log

    def __call__(self, db: sqlite3.Connection) -> None:
        name = threading.current_thread().name
        self.copies.append(name)
        if name.startswith("mqttd-checkpoint"):
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
            if self.error is not None:
                raise self.error
        self._copy(db)


@pytest.fixture(name="copying")
def _copying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copying]:
    copying = Copying()
    monkeypatch.setattr(sqlite, "_copy_log", copying)
    yield copying
    copying.go_on.set()  # no thread stays behind, whatever the test found


def test_the_log_does_not_grow_for_ever(path: Path) -> None:
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        longest = written = 0
        for number in range(150):
            fill(disk, "a", [number], size=20_000)
            copied(disk)  # which a slow machine has no time for between any two commits
            longest = max(longest, log_of(path))
            written += 20_000
        assert written > 10 * EVERY
        assert longest < 3 * EVERY
        assert path.stat().st_size > 8 * EVERY  # and all of that is in the database
        with disk.crash() as other:
            assert state_of(other) == state_of(disk)
            assert Receiver("away").connect(other).drain(other) == list(range(150))


def test_commits_go_on_while_the_log_is_copied(path: Path, copying: Copying) -> None:
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        number = begin_copying(disk)
        assert copying.entered.wait(PATIENCE)
        before = log_of(path)
        copies = list(copying.copies)
        fill(disk, "a", range(number, number + 50), size=20_000)
        assert copying.copies == copies  # one at a time
        assert log_of(path) > before + 50 * 20_000
        with disk.crash() as other:  # as long as it isn't copied, all is in the log
            assert state_of(other) == state_of(disk)
        mark = len(copying.copies)
        copying.go_on.set()
        copied(disk)
        whole = log_of(path)
        fill(disk, "a", [number + 50])
        # The writer copied what had come meanwhile, and the next commit begins at the front.
        assert [name.split("_")[0] for name in copying.copies[mark:]] == ["mqttd-store"]
        fill(disk, "a", [number + 51])
        fill(disk, "a", [number + 52])
        assert log_of(path) < whole + 100_000
        assert Receiver("away").connect(disk).drain(disk) == list(range(number + 53))
        assert rows_in(disk) == EMPTY
    with Disk(path) as disk:
        assert_sound(disk)


def test_closing_waits_for_the_copier(path: Path, copying: Copying) -> None:
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        number = begin_copying(disk)
        assert copying.entered.wait(PATIENCE)

        async def close() -> None:
            closing = asyncio.ensure_future(disk.store.close())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not closing.done()
            copying.go_on.set()
            await closing

        disk._runner.run(close())
        assert not any(
            thread.name.startswith("mqttd-checkpoint") for thread in threading.enumerate()
        )
        assert not Path(f"{path}-wal").exists()
    with Disk(path) as disk:
        assert Receiver("away").connect(disk).drain(disk) == list(range(number))


def test_crashes_around_a_copy(path: Path, copying: Copying) -> None:
    """Before it, after the copier's part, after the writer's, and when the log began anew."""
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        number = begin_copying(disk)
        states = [(left_behind(path, "before"), state_of(disk))]
        copying.go_on.set()
        copied(disk)
        states.append((left_behind(path, "copied"), state_of(disk)))
        fill(disk, "a", [number])
        states.append((left_behind(path, "complete"), state_of(disk)))
        fill(disk, "a", [number + 1])
        states.append((left_behind(path, "anew"), state_of(disk)))
    for place, state in states:
        with Disk(place) as other:
            assert state_of(other) == state
            assert_sound(other)


def test_somebody_who_reads_keeps_the_log_from_beginning_anew(path: Path) -> None:
    """As a backup does: nothing is lost, and the log shrinks once that is done."""
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        fill(disk, "a", [0])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
            for number in range(1, 60):
                fill(disk, "a", [number], size=20_000)
                copied(disk)
            assert log_of(path) > 3 * EVERY
            assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
            reader.execute("COMMIT")
        before = log_of(path)
        for number in range(60, 120):
            fill(disk, "a", [number], size=20_000)
            copied(disk)
        assert log_of(path) <= before + EVERY
        assert Receiver("away").connect(disk).drain(disk) == list(range(120))


def said(code: int, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("said so")
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


def test_a_bug_in_the_copier_is_the_end_and_closing_goes_on(path: Path, copying: Copying) -> None:
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        copying.error = RuntimeError("a bug")
        number = begin_copying(disk)
        copying.go_on.set()
        assert disk.store._copying is not None
        assert disk.store._copying.exception(PATIENCE)
        with pytest.raises(StoreError, match="a bug"):
            fill(disk, "a", [number])
    with Disk(path) as disk:
        assert Receiver("away").connect(disk).drain(disk) == list(range(number))


class Cramped(sqlite3.Connection):
    """A connection to a database on a disk that has no room for what is in its log."""

    error = said(sqlite3.SQLITE_FULL, "SQLITE_FULL")

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        if "wal_checkpoint" in statement[0]:
            raise self.error
        return super().execute(*statement)


class Broken(Cramped):
    """The same with a disk that doesn't work."""

    error = said(sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE")


def connecting(kind: type[sqlite3.Connection]) -> Callable[[Path, str], sqlite3.Connection]:
    """What the copier connects by."""

    def connect(place: Path, synchronous: str) -> sqlite3.Connection:
        return sqlite3.connect(place, isolation_level=None, check_same_thread=False, factory=kind)

    return connect


def test_a_copy_to_a_broken_disk_is_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        monkeypatch.setattr(sqlite, "_connect", connecting(Broken))
        number = begin_copying(disk)
        assert disk.store._copying is not None
        assert isinstance(disk.store._copying.exception(PATIENCE), StoreError)
        with pytest.raises(StoreError, match="input/output error"):
            fill(disk, "a", [number])
        with pytest.raises(StoreError, match="input/output error"):
            disk.tidy()
    monkeypatch.undo()
    with Disk(path) as disk:
        assert Receiver("away").connect(disk).drain(disk) == list(range(number))


def test_a_copy_without_room_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log grows, as long as it can, and what is committed stays so."""
    with Disk(path, durability="os") as disk:
        away(disk, "away", "a")
        connect = sqlite._connect
        monkeypatch.setattr(sqlite, "_connect", connecting(Cramped))
        for number in range(40):
            fill(disk, "a", [number], size=20_000)
            copied(disk)
        monkeypatch.setattr(sqlite, "_connect", connect)
        for number in range(40, 80):
            fill(disk, "a", [number], size=20_000)
            copied(disk)
        assert path.stat().st_size > 2 * EVERY
        assert Receiver("away").connect(disk).drain(disk) == list(range(80))
