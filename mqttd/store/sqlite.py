"""The store that keeps its promises in one SQLite file.

Owns: the file, its lock, the one thread that touches it, and what a level of durability means:
`full` syncs each commit before it is reported; `os` leaves that to the operating system, which
survives the end of the process but not of the machine; `none` reports before it writes.

Must not know: connections, acknowledgements, what a session is for. What a batch means is in
`mqttd.store.rows`, how the pieces become a broker again in `mqttd.core.restore`.

Invariants: one transaction a batch, in order; after one failed nothing is ever written again, no
matter what the disk says next; a file that is damaged, empty, foreign, of a newer version or in use
is refused before a byte of it is changed; a new file appears under its name only when it is whole.

The lock is on a file of its own, since closing a second descriptor of the database would drop
SQLite's own locks on it. The check at every start reads each page once (`quick_check`): flipped and
missing pages come from the time the broker was away, whether it had stopped cleanly or not, and
loading reads nearly all of them anyway. Rows are written many to a statement: each statement gives
the interpreter's lock away, and a busy loop returns it late.
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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from mqttd import log
from mqttd.core.broker import Broker
from mqttd.core.journal import Batch
from mqttd.core.message import Message
from mqttd.core.packets import Will
from mqttd.core.restore import Restorer
from mqttd.store import schema
from mqttd.store.base import Store, StoreError
from mqttd.store.rows import Changes, Encoder, Row

logger: Final = logging.getLogger("mqttd.store")

LEVELS: Final = {"full": "FULL", "os": "NORMAL", "none": "OFF"}

_OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables
_BUSY_MS: Final = 5000  # somebody looks at the file with another tool
_GROUPS: Final = (256, 64, 16, 4, 1)  # rows in one statement
_CHECKPOINT_BYTES: Final = 16 << 20  # written to the log until it is copied into the database
_COMMIT_BYTES: Final = 16 << 10  # what a commit writes at least: a page of each of some trees
_ROW_BYTES: Final = 128

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
        self._db: sqlite3.Connection | None = None
        self._encoder: Encoder | None = None
        self._lock = -1
        self._failure: StoreError | None = None
        self._logged = 0  # bytes since the last checkpoint, roughly

    async def load(self, broker: Broker) -> None:
        encoder = Encoder(broker, lambda: self._wall() - self._clock())
        self._thread = ThreadPoolExecutor(1, "mqttd-store")
        self._failure = None
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

    async def close(self) -> None:
        if self._thread is not None:
            await self._call(self._close)
            self._thread.shutdown()
            self._thread = None

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
            raise StoreError(f"{self.path}: can't be used: {error.strerror or error}") from error
        try:
            self._db = _connect(self.path, LEVELS[self.durability])
            schema.migrate(self._db)
            began = time.perf_counter()
            deliveries = _read(
                self._db, broker, encoder, self._wall() - self._clock(), self._clock()
            )
        except sqlite3.Error as error:
            raise StoreError(_explain(self.path, error)) from error
        log.event(
            logger,
            "storage",
            path=self.path,
            durability=self.durability,
            sessions=len(broker.sessions),
            deliveries=deliveries,
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
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode("ascii"), 0)

    def _write(self, changes: Changes) -> None:
        """One transaction; the first failure is the last."""
        if self._failure is not None:
            raise self._failure
        db = self._db
        assert db is not None
        try:
            db.execute("BEGIN IMMEDIATE")
            self._logged += _COMMIT_BYTES + _apply(db, changes)
            db.execute("COMMIT")
            if self._logged >= _CHECKPOINT_BYTES:
                self._logged = 0
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            self._failure = StoreError(_explain(self.path, error))
            raise self._failure from error
        except BaseException as error:
            self._failure = StoreError(f"{self.path}: {error!r}")
            raise

    def _close(self) -> None:
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


# Writing.


def _apply(db: sqlite3.Connection, changes: Changes) -> int:
    """Every change of one transaction; returns roughly how many bytes that are."""
    ended = list(changes.ended)
    for table in ("subscriptions", "inbound", "wills", "sessions"):
        _delete(db, table, "client", ended)
    _put(db, "INSERT OR REPLACE INTO sessions VALUES ", 6, list(changes.sessions.values()))
    _replace(db, "wills", "client", 8, changes.wills)
    for client, of_client in changes.subscriptions.items():
        gone = [(client, name) for name, row in of_client.items() if row is None]
        if gone:
            db.executemany("DELETE FROM subscriptions WHERE client = ? AND filter = ?", gone)
    rows = chain.from_iterable(each.values() for each in changes.subscriptions.values())
    _put(
        db,
        "INSERT OR REPLACE INTO subscriptions (client, filter, qos, no_local,"
        " retain_as_published, retain_handling, identifier) VALUES ",
        7,
        [row for row in rows if row is not None],
    )
    begun: list[Row] = []
    over: list[Row] = []
    for client, exchanges in changes.inbound.items():
        for packet_id, there in exchanges.items():
            (begun if there else over).append((client, packet_id))
    _put_over(
        db,
        "DELETE FROM inbound WHERE rowid IN (WITH over (c, p) AS (VALUES ",
        2,
        over,
        ") SELECT i.rowid FROM over CROSS JOIN inbound AS i"
        " WHERE i.client = c AND i.packet_id = p)",
    )
    _put(db, "INSERT OR REPLACE INTO inbound VALUES ", 2, begun)
    _replace(db, "retained", "topic", 6, changes.retained)
    messages = list(changes.messages.values())
    deliveries = list(changes.deliveries.values())
    moved = list(changes.moved.values())
    _delete(db, "deliveries", "serial", changes.settled)
    _delete(db, "messages", "id", list(changes.done_messages))
    _put(db, "INSERT INTO messages VALUES ", 7, messages)
    _put(db, "INSERT INTO deliveries VALUES ", 9, deliveries)
    _put_over(
        db,
        "WITH new (serial, packet_id, state) AS (VALUES ",
        3,
        moved,
        ") UPDATE deliveries SET packet_id = new.packet_id, state = new.state"
        " FROM new WHERE deliveries.serial = new.serial",
    )
    size = sum(len(row[2]) for row in messages if isinstance(row[2], bytes))
    count = len(messages) + len(deliveries) + len(moved) + len(changes.settled)
    return size + _ROW_BYTES * (count + len(changes.retained) + len(begun) + len(over))


def _replace(
    db: sqlite3.Connection, table: str, key: str, width: int, rows: dict[str, Row | None]
) -> None:
    """Rows that are there or not, one for each key."""
    _delete(db, table, key, [name for name, row in rows.items() if row is None])
    there = [row for row in rows.values() if row is not None]
    _put(db, f"INSERT OR REPLACE INTO {table} VALUES ", width, there)


def _delete(db: sqlite3.Connection, table: str, key: str, values: Sequence[str | int]) -> None:
    if values:
        rows = [(value,) for value in values]
        _put_over(db, f"DELETE FROM {table} WHERE {key} IN (VALUES ", 1, rows, ")")


def _put(db: sqlite3.Connection, head: str, width: int, rows: Sequence[Row]) -> None:
    if rows:
        _put_over(db, head, width, rows, "")


def _put_over(
    db: sqlite3.Connection, head: str, width: int, rows: Sequence[Row], tail: str
) -> None:
    """Run a statement over a list of rows, as many at a time as can be."""
    at = 0
    left = len(rows)
    marks = "(" + ",".join("?" * width) + ")"
    for group in _GROUPS:
        if left < group:
            continue
        statement = head + ",".join([marks] * group) + tail
        while left >= group:
            db.execute(statement, list(chain.from_iterable(rows[at : at + group])))
            at += group
            left -= group


# Reading.


def _read(
    db: sqlite3.Connection, broker: Broker, encoder: Encoder, offset: float, now: float
) -> int:
    """Put everything into a fresh broker; returns how many deliveries there were."""
    restorer = Restorer(broker, now)

    def instant(wall: float | None) -> float:
        """The core's clock for a wall clock time; 0.0 for none, so never that for an instant."""
        return 0.0 if wall is None else max(wall - offset, 1e-9)

    for client, user, expiry, connected, expires_at, will_at in db.execute(
        "SELECT client, user, expiry, connected, expires_at, will_at FROM sessions"
    ):
        restorer.session(
            client, user, expiry, bool(connected), instant(expires_at), instant(will_at)
        )
    for client, topic, payload, qos, retain, delay, lasts, properties in db.execute(
        "SELECT client, topic, payload, qos, retain, delay, expiry, properties FROM wills"
    ):
        restorer.will(client, Will(topic, payload, qos, bool(retain), delay, lasts, properties))
    for client, name, qos, no_local, as_published, handling, identifier in db.execute(
        "SELECT client, filter, qos, no_local, retain_as_published, retain_handling, identifier"
        " FROM subscriptions ORDER BY id"
    ):
        restorer.subscription(
            client, name, qos, bool(no_local), bool(as_published), handling, identifier
        )
    for client, packet_id in db.execute("SELECT client, packet_id FROM inbound"):
        restorer.inbound(client, packet_id)
    next_serial = _read_deliveries(db, restorer, encoder, instant)
    for topic, payload, qos, properties, expires_at, origin in db.execute(
        "SELECT topic, payload, qos, properties, expires_at, origin FROM retained"
    ):
        restorer.retained(
            _message(topic, payload, qos, True, properties, instant(expires_at), origin)
        )
    restorer.finish(next_serial)
    return restorer.deliveries


def _read_deliveries(
    db: sqlite3.Connection,
    restorer: Restorer,
    encoder: Encoder,
    instant: Callable[[float | None], float],
) -> int:
    """Every delivery with its message; returns the first serial that is free."""
    messages: dict[int, Message] = {}
    rows: Iterable[tuple[int, str, bytes, int, int, bytes, float | None]] = db.execute(
        "SELECT id, topic, payload, qos, retain, properties, expires_at FROM messages"
    )
    topics: dict[str, str] = {}  # one object for all messages of a topic
    for number, topic, payload, qos, retain, properties, expires_at in rows:
        topic = topics.setdefault(topic, topic)
        messages[number] = _message(
            topic, payload, qos, bool(retain), properties, instant(expires_at), ""
        )
    owners = dict.fromkeys(messages, 0)
    last = 0
    for serial, client, share, number, packet_id, state, qos, retain, identifiers in db.execute(
        "SELECT serial, client, share, message, packet_id, state, qos, retain, identifiers"
        " FROM deliveries ORDER BY serial"
    ):
        last = serial
        if number not in messages:
            raise sqlite3.DatabaseError(f"is damaged: delivery {serial} has lost its message")
        owners[number] += 1
        restorer.delivery(
            client,
            share or "",
            messages[number],
            number,
            serial,
            packet_id,
            state,
            qos,
            bool(retain),
            identifiers,
        )
    encoder.next_row = max(messages, default=0) + 1
    encoder.shared = {number: count for number, count in owners.items() if count > 1}
    return last + 1


def _message(
    topic: str,
    payload: bytes,
    qos: int,
    retain: bool,
    properties: bytes,
    expires_at: float,
    origin: str,
) -> Message:
    key = topic.encode("utf-8")
    return Message(topic, key, payload, qos, retain, properties, expires_at, origin)
