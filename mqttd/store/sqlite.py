"""The store that keeps its promises in one SQLite file.

Owns: the file, its lock, the two threads that touch it, and what a level of durability means:
`full` syncs each commit before it is reported; `os` leaves that to the operating system, which
survives the end of the process but not of the machine; `none` reports before it writes.

Must not know: connections, acknowledgements, what a session is for. What a batch means is in
`mqttd.store.rows`, what is done to the tables in `mqttd.store.tables`, how the pieces become a
broker again in `mqttd.core.restore`.

Invariants: one transaction a batch, in order; one that found no room on the disk is tried again as
it is, and nothing overtakes it; after any other failure nothing is ever written again, no matter
what the disk says next; a file that is damaged, empty, foreign, of a newer version or in use is
refused before a byte of it is changed; a new file appears under its name only when it is whole.

One thread writes and reads. The other copies the log into the database: that takes tens of
milliseconds and syncs of its own, and no commit waits for it. Since commits go on meanwhile, it
never quite catches up with them; so the few pages that came in between are copied by the writer
itself, between two commits, and the next commit begins the log anew.

The lock is on a file of its own, since closing a second descriptor of the database would drop
SQLite's own locks on it. The check at every start reads each page once (`quick_check`): flipped and
missing pages come from the time the broker was away, whether it had stopped cleanly or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from mqttd import log
from mqttd.core.broker import Broker
from mqttd.core.inflight import Delivery
from mqttd.core.journal import Batch
from mqttd.core.queue import PAGE_BYTES
from mqttd.core.restore import Restorer
from mqttd.core.session import PageRequest
from mqttd.store import schema, tables
from mqttd.store.base import Store, StoreError, StoreFull, Tidied
from mqttd.store.rows import RESERVE, Changes, Encoder

logger: Final = logging.getLogger("mqttd.store")

LEVELS: Final = {"full": "FULL", "os": "NORMAL", "none": "OFF"}

_OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables
_BUSY_MS: Final = 5000  # somebody looks at the file with another tool
_CHECKPOINT_BYTES: Final = 16 << 20  # written to the log until it is copied into the database
_LOG_KEPT: Final = 64 << 20  # bytes of the log that stay allocated once it begins anew
_COMMIT_BYTES: Final = 16 << 10  # what a commit writes at least: a page of each of some trees

# Housekeeping, one slice: a commit waits for it a few milliseconds.
_SLICE_ROWS: Final = 1000
_SLICE_PAGES: Final = 256
_GARBAGE_BYTES: Final = 2048  # written to the log to delete one of them, roughly
_SWEEP_EVERY: Final = 60.0  # seconds at least between two walks through all that waits
_FREE_PAGES: Final = 1024  # that many stay in the file for what comes next, or an eighth of it

_NO_ROOM: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

T = TypeVar("T")


class SqliteStore(Store):
    """Keeps everything in the file `path`."""

    durable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        durability: str = "full",
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self.durability = durability
        self.behind = durability == "none"
        self._wall = wall
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None
        self._copier: ThreadPoolExecutor | None = None
        self._copying: Future[None] | None = None
        self._db: sqlite3.Connection | None = None
        self._encoder: Encoder | None = None
        self._lock = -1
        self._failure: StoreError | None = None
        self._refused: Changes | None = None  # found no room
        self._logged = 0  # bytes since the last checkpoint, roughly
        self._copied = False  # most of the log: the rest is left to the writer
        self._garbage: deque[array[int]] = deque()  # serials that nobody will ask for
        self._swept: int | None = None  # the search for expired messages is at this serial
        self._sweep_at = 0.0

    async def load(self, broker: Broker) -> None:
        encoder = Encoder(broker, self._wall, self._clock)
        self._thread = ThreadPoolExecutor(1, "mqttd-store")
        self._copier = ThreadPoolExecutor(1, "mqttd-checkpoint")
        self._failure = None
        self._refused = None
        self._copied = False
        self._logged = 0
        self._swept = None
        broker.journal.paging = True
        try:
            await self._call(lambda: self._open(broker, encoder))
        except BaseException:
            await self.close()
            raise
        self._encoder = encoder

    def commit(self, batch: Batch) -> Awaitable[None]:
        assert self._encoder is not None
        changes = self._encoder.encode(batch)
        return self._call(lambda: self._write(changes))

    def retry(self) -> Awaitable[None]:
        changes = self._refused
        assert changes is not None
        return self._call(lambda: self._write(changes))

    async def pages(self, requests: list[PageRequest]) -> list[list[Delivery]]:
        read = await self._call(lambda: self._read_pages(requests))
        offset = self._wall() - self._clock()
        return [tables.deliveries_of(rows, offset) for rows in read]

    async def tidy(self) -> Tidied:
        return await self._call(self._tidy)

    async def close(self) -> None:
        if self._thread is not None:
            await self._call(self._close)
            self._thread.shutdown()
            self._thread = None
        if self._copier is not None:
            self._copier.shutdown()
            self._copier = None

    def _call(self, job: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, job)

    # From here on in the store's own thread.

    def _open(self, broker: Broker, encoder: Encoder) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            wanted = ".".join(map(str, _OLDEST_SQLITE))
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old, {wanted} is needed")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            if not self.path.exists():
                _create(self.path)
            _check(self.path)
        except OSError as error:
            raise StoreError(
                f"{self.path}: can't be used: {error.strerror or error}; name another place as"
                ' storage.path, or ":memory:" to keep nothing'
            ) from error
        try:
            self._db = _connect(self.path, LEVELS[self.durability])
            schema.migrate(self._db)
            # What was committed when the last broker was killed may not have been synced yet, and
            # what follows from it must not be acknowledged before it is.
            _copy_log(self._db)
            began = time.perf_counter()
            restorer = Restorer(broker, self._clock())
            offset = self._wall() - self._clock()
            garbage, encoder.next_row = tables.read(self._db, restorer, offset)
            encoder.reserved = _reserve(self._db, broker.journal.next_serial)
            self._garbage = deque([garbage] if garbage else [])
        except sqlite3.Error as error:
            raise StoreError(_explain(self.path, error)) from error
        log.event(
            logger,
            "storage",
            path=self.path,
            durability=self.durability,
            sessions=len(broker.sessions),
            deliveries=restorer.deliveries,
            retained=broker.retained.count,
            loaded_s=round(time.perf_counter() - began, 3),
        )

    def _take_lock(self) -> None:
        """One broker a file. The lock goes with the process, however that ends."""
        file = self.path.with_name(self.path.name + ".lock")
        self._lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            raise StoreError(
                f"{self.path}: another broker uses this file (process {holder or 'unknown'})"
            ) from None
        with contextlib.suppress(OSError):  # for people only; a full disk must not be the end here
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode("ascii"), 0)

    def _write(self, changes: Changes) -> None:
        """One transaction."""
        db = self._usable()
        with self._guarded():
            try:
                db.execute("BEGIN IMMEDIATE")
                self._logged += _COMMIT_BYTES + tables.apply(db, changes)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                if not _is_no_room(error):
                    raise
                # Nothing of it is in the database; it is tried again as it is.
                self._refused = changes
                if db.in_transaction:
                    db.rollback()
                _copy_log(db)  # what is in the database makes room in the log
                raise StoreFull(_explain(self.path, error)) from error
        self._refused = None
        self._garbage.extend(changes.garbage)
        if self._copied or self._logged >= _CHECKPOINT_BYTES:
            self._checkpoint(db)

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        """Have the log copied, or copy what came since that was done."""
        if self._copying is None:
            assert self._copier is not None
            self._copying = self._copier.submit(self._copy)
        elif self._copied:
            self._copying = None
            self._copied = False
            self._logged = 0
            with self._guarded():
                _copy_log(db)

    def _copy(self) -> None:
        """In the copier's thread."""
        level = LEVELS[self.durability]
        with self._guarded(), contextlib.closing(_connect(self.path, level)) as db:
            _copy_log(db)
        self._copied = True

    def _read_pages(self, requests: list[PageRequest]) -> list[list[tables.PageRow]]:
        db = self._usable()
        with self._guarded():
            return [tables.read_page(db, each.serials, PAGE_BYTES) for each in requests]

    def _tidy(self) -> Tidied:
        """One slice of housekeeping: what was found expired, and whether there is more to do."""
        db = self._usable()
        if self._refused is not None:
            return Tidied([], False)  # every page that is freed now needs room in the log first
        with self._guarded():
            try:
                if self._garbage:
                    self._drop_garbage(db)
                expired = self._sweep(db)
                freed = _give_back(db)
                self._logged += freed << 12
            except sqlite3.Error as error:
                if not _is_no_room(error):
                    raise
                if db.in_transaction:
                    db.rollback()
                return Tidied([], False)
        if self._copied or self._logged >= _CHECKPOINT_BYTES:
            self._checkpoint(db)
        return Tidied(expired, bool(self._garbage or freed or self._swept is not None))

    def _drop_garbage(self, db: sqlite3.Connection) -> None:
        serials = self._garbage[0]
        part = serials[:_SLICE_ROWS]
        db.execute("BEGIN IMMEDIATE")
        tables.forget(db, part)
        db.execute("COMMIT")
        self._logged += len(part) * _GARBAGE_BYTES
        del serials[:_SLICE_ROWS]
        if not serials:
            self._garbage.popleft()

    def _sweep(self, db: sqlite3.Connection) -> list[tuple[int, int]]:
        """A slice of the search for expired messages; it begins when there is one."""
        wall = self._wall()
        if self._swept is None:
            now = self._clock()
            if now < self._sweep_at or not tables.has_expired(db, wall):
                return []
            self._sweep_at = now + _SWEEP_EVERY
            self._swept = tables.FIRST
        expired, self._swept = tables.find_expired(db, self._swept, _SLICE_ROWS, wall)
        return expired

    def _usable(self) -> sqlite3.Connection:
        if self._failure is not None:
            raise self._failure
        assert self._db is not None
        return self._db

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """The first failure is the last: there is no telling what a disk did that failed once."""
        try:
            yield
        except StoreFull:
            raise
        except sqlite3.Error as error:
            self._failure = StoreError(_explain(self.path, error))
            raise self._failure from error
        except BaseException as error:
            self._failure = StoreError(f"{self.path}: {error!r}")
            raise

    def _close(self) -> None:
        if self._copying is not None:
            self._copying.exception()  # which waits for it
            self._copying = None
        db, self._db = self._db, None
        if db is not None:
            # What was reported is in the log already. After a failure this is all that is done:
            # the log's committed part, which was synced in its time, is copied if it can be.
            with contextlib.suppress(sqlite3.Error):
                db.rollback()
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("PRAGMA wal_autocheckpoint = 0")  # not inside a commit that somebody waits for
    db.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT}")
    db.execute("PRAGMA mmap_size = 0")  # a stray write into mapped pages would go to the file
    return db


def _create(path: Path) -> None:
    """A new database: made aside, synced, and only then given its name."""
    for suffix in ("-wal", "-journal"):
        log_file = Path(f"{path}{suffix}")
        if log_file.exists() and log_file.stat().st_size:
            raise StoreError(f"{path}: is missing, but {log_file} is there: restore both")
    draft = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{draft}{suffix}").unlink(missing_ok=True)
    # SQLite gives its other files the mode of this one.
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        db = sqlite3.connect(draft, isolation_level=None)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # can't be had later
            schema.migrate(db)
            db.execute("PRAGMA journal_mode = WAL").fetchall()
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(_explain(path, error)) from error
    _sync(draft)
    draft.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path) -> None:
    """Refuse what can't be trusted; read only, so that nothing is changed by looking."""
    with path.open("r+b") as file:  # readable and writable, which SQLite wouldn't say so plainly
        head = file.read(16)
    if not head:
        raise StoreError(f"{path}: is empty, not a database; remove it to start without state")
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            version = schema.version_of(db)
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0] if version >= 0 else "ok"
        finally:
            db.close()
    except sqlite3.Error as error:
        raise StoreError(_explain(path, error)) from error
    if version <= 0:
        raise StoreError(f"{path}: is not a database of mqttd; nothing was changed")
    if version > schema.VERSION:
        raise StoreError(
            f"{path}: was written by a newer mqttd (schema {version}, this one knows"
            f" {schema.VERSION}); nothing was changed"
        )
    if found != "ok":
        raise StoreError(f"{path}: is damaged ({found}); nothing was changed, restore a backup")


def _explain(path: Path, error: sqlite3.Error) -> str:
    """What a failure means for whoever runs the broker."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    what = {
        sqlite3.SQLITE_FULL: "no room left on the disk",
        sqlite3.SQLITE_IOERR: "input/output error",
        sqlite3.SQLITE_BUSY: "locked by another process",
        sqlite3.SQLITE_READONLY: "can't be written",
        sqlite3.SQLITE_PERM: "can't be written",
        sqlite3.SQLITE_CANTOPEN: "can't be opened",
        sqlite3.SQLITE_CORRUPT: "is damaged; nothing was overwritten, restore a backup",
        sqlite3.SQLITE_NOTADB: "is not a database, or damaged; nothing was overwritten",
    }.get(code)
    name = getattr(error, "sqlite_errorname", "")
    detail = f"{name}: {error}" if name else str(error)
    return f"{path}: {what} ({detail})" if what else f"{path}: {detail}"


def _is_no_room(error: sqlite3.Error) -> bool:
    """The disk is full. Never said of a failed sync, after which nothing is certain."""
    return getattr(error, "sqlite_errorcode", 0) in _NO_ROOM


def _reserve(db: sqlite3.Connection, next_serial: int) -> int:
    """Note that serials from here on are given, before any is: the first of them may have left the
    broker when a crash comes before the first batch. Returns the first that isn't noted."""
    reserved = next_serial + 2 * RESERVE
    try:
        tables.reserve(db, reserved)
    except sqlite3.Error as error:
        if not _is_no_room(error):
            raise
        return 0  # the first batch that finds room does it
    return reserved


def _copy_log(db: sqlite3.Connection) -> None:
    """Copy what the log holds into the database, as far as nobody is in the way."""
    try:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except sqlite3.Error as error:
        if not _is_no_room(error):  # or the log just goes on growing, as long as it can
            raise


def _give_back(db: sqlite3.Connection) -> int:
    """Give free pages at the end of the file back to the disk; returns how many."""
    free: int = db.execute("PRAGMA freelist_count").fetchone()[0]
    total: int = db.execute("PRAGMA page_count").fetchone()[0]
    count = min(free - max(_FREE_PAGES, total >> 3), _SLICE_PAGES)
    if count <= 0:
        return 0
    # `execute` would take one step only, which is one page.
    db.executescript(f"PRAGMA incremental_vacuum({count})")
    left: int = db.execute("PRAGMA freelist_count").fetchone()[0]
    return free - left
