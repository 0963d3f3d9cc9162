"""The database from outside: what `mqttd db check` and `mqttd db stats` find out about it.

Owns: how a database is opened by somebody who isn't its broker; the invariants of the tables as
queries; what is counted. Each call gives one document of plain values for machines;
`mqttd.store.view` says the same to people.

Must not know: the broker and its core, terminals, exit codes.

Invariants: no byte of the database is changed, nor of its log or its lock file; it isn't even
opened but by SQLite, since closing another descriptor would drop SQLite's locks where a broker runs
in this process. What a call reports is one instant (one read transaction), whatever a broker
commits meanwhile.

A read-only connection to a database with a write-ahead log makes the files of that log where there
are none, and leaves them. So a database that nobody uses and that has no log is opened as
`immutable`, without any lock or log, and looked at again the usual way if a broker has come
meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from heapq import nlargest
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from mqttd.store import schema

CHECK: Final = "mqttd.db.check/1"
STATS: Final = "mqttd.db.stats/1"

SOON_S: Final = 86400.0  # a session that expires within it expires soon

_OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables
_BUSY_MS: Final = 5000

Document = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Hears what is being done, how far it is and of how much; 0 where nobody can say how much."""

T = TypeVar("T")


class Unusable(Exception):
    """The file can't be looked at or copied; the text says why and what to do."""


class Damaged(Unusable):
    """The file can be opened and is not as it was written."""


def silent(step: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


# Opening.


class Use:
    """Whether a broker has the database: True, False, or None where that can't be found out."""

    def __init__(self, taken: bool | None, process: int | None = None) -> None:
        self.taken = taken
        self.process = process

    def document(self) -> Document:
        return {"in_use": self.taken, "in_use_by": self.process}


def use_of(path: Path) -> Use:
    """Asks the lock file, which a running broker holds; it is neither made nor kept."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Use(False)
    except OSError:
        return Use(None)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            return Use(True, int(os.pread(lock, 32, 0)))
        return Use(True)
    except OSError:
        return Use(None)
    else:
        return Use(False)
    finally:
        os.close(lock)  # and with it the lock


def find(path: Path) -> None:
    """Say plainly what SQLite would call "unable to open database file"."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        wanted = ".".join(map(str, _OLDEST_SQLITE))
        raise Unusable(f"SQLite {sqlite3.sqlite_version} is too old, {wanted} is needed")
    try:
        found = path.stat()
    except OSError as error:
        raise Unusable(f"{path}: can't be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(f"{path}: is not a file")
    if not found.st_size:
        raise Unusable(f"{path}: is empty, not a database")
    effective = os.access in os.supports_effective_ids
    if not os.access(path, os.R_OK, effective_ids=effective):
        raise Unusable(f"{path}: can't be read (Permission denied); run this as the broker's user")


def _resting(path: Path) -> tuple[int, ...] | None:
    """A mark of the file's state, if nobody uses it and all of it is in the one file."""
    if use_of(path).taken is not False:
        return None
    if size_of(f"{path}-wal") or size_of(f"{path}-journal"):
        return None
    try:
        found = path.stat()
    except OSError as error:
        raise Unusable(f"{path}: can't be read ({error.strerror})") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@contextlib.contextmanager
def connection(path: Path, how: str) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path))}?{how}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        db.text_factory = _text
        yield db


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def reading(path: Path, job: Callable[[sqlite3.Connection], T]) -> T:
    """What `job` finds in the database; it may be called twice, the second result counts."""
    try:
        mark = _resting(path)
        if mark is not None:
            outcome: list[T] = []
            failure: sqlite3.Error | None = None
            try:
                with connection(path, "mode=ro&immutable=1") as db:
                    outcome.append(job(db))
            except sqlite3.Error as error:
                failure = error
            if _resting(path) == mark:
                if failure is not None:
                    raise failure
                return outcome[0]
            # A broker has come, and may have changed pages that were being read.
        with connection(path, "mode=ro") as db:
            return job(db)
    except sqlite3.Error as error:
        raise _explained(path, error) from error


@contextlib.contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Everything that is read in here is as of one commit."""
    db.execute("BEGIN")
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield
    finally:
        db.rollback()


def version_in(db: sqlite3.Connection, path: Path) -> int:
    version = schema.version_of(db)
    if version <= 0:
        raise Unusable(f"{path}: is not a database of mqttd")
    return version


def _explained(path: Path, error: sqlite3.Error) -> Unusable:
    """What a failure to read means for whoever called."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = getattr(error, "sqlite_errorname", "")
    detail = f"{name}: {error}" if name else str(error)
    closed = code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
    if closed and os.path.exists(f"{path}-wal"):
        return Unusable(
            f"{path}: can't be opened ({detail}). It has a log, {path}-wal, which SQLite can't read"
            f" without writing to {path}-shm: run this as the broker's user, or copy {path} and its"
            " log, while no broker runs, to a directory of your own and look there"
        )
    if code == sqlite3.SQLITE_BUSY:
        return Unusable(f"{path}: is locked by another process ({detail}); try again later")
    if code == sqlite3.SQLITE_NOTADB:
        return Unusable(f"{path}: is not a database, or its first page is damaged ({detail})")
    if code == sqlite3.SQLITE_CORRUPT:
        return Damaged(f"{path}: is damaged ({detail}); stop the broker and restore a backup")
    if code == sqlite3.SQLITE_IOERR:
        return Unusable(f"{path}: input/output error ({detail}); look at the disk")
    return Unusable(f"{path}: can't be used ({detail})")


# Checking.

_DAMAGED: Final = "the file is damaged: stop the broker and restore a backup"
_UNSEEN: Final = "the rows weren't looked at, since the file is damaged"

_COUNT_DELIVERIES: Final = (
    "CREATE TEMP TABLE counted (message INTEGER PRIMARY KEY, n INTEGER, low INTEGER, high INTEGER)",
    "INSERT INTO counted SELECT message, count(*), min(shared), max(shared)"
    " FROM main.deliveries GROUP BY message ORDER BY message",
)

_DELIVERY: Final = "'owner ' || owner || ', serial ' || serial"
_ENDED: Final = (
    "SELECT count(*) FROM deliveries WHERE owner NOT IN (SELECT number FROM sessions)"
    " AND owner NOT IN (SELECT number FROM shares)"
)
_STRANGER: Final = "client NOT IN (SELECT client FROM sessions)"

# The name of a check, what a finding means, and the query for how many there are and an example.
_INVARIANTS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "delivery-without-message",
        "a delivery has lost its message",
        "SELECT sum(n), 'message ' || message FROM counted LEFT JOIN messages ON id = message"
        " WHERE id IS NULL",
    ),
    (
        "message-without-delivery",
        "a message waits for nobody and only takes room",
        "SELECT count(*), 'message ' || id FROM messages LEFT JOIN counted ON message = id"
        " WHERE message IS NULL",
    ),
    (
        "shared-flag",
        "a message has several deliveries, and one says it is the only one",
        "SELECT count(*), 'message ' || message || ': ' || n || ' deliveries' FROM counted"
        " WHERE n > 1 AND low = 0 OR low < 0 OR high > 1",
    ),
    (
        "refs-count",
        "the count of a message's deliveries is wrong, so it goes too early or never",
        "SELECT count(*), 'message ' || message || ': ' || n || ' deliveries, refs has '"
        " || coalesce(refs.left, 'none') FROM counted LEFT JOIN refs USING (message)"
        " WHERE high = 1 AND refs.left IS NOT n",
    ),
    (
        "refs-unused",
        "a count of deliveries is kept for a message that shares none",
        "SELECT count(*), 'message ' || message FROM refs LEFT JOIN counted USING (message)"
        " WHERE high IS NOT 1",
    ),
    (
        "number-twice",
        "a session and a shared group have the same number, so their queues are mixed",
        "SELECT count(*), 'number ' || number || ', client ' || client FROM sessions"
        " WHERE number IN (SELECT number FROM shares)",
    ),
    (
        "packet-id-range",
        "a packet identifier is none",
        f"SELECT count(*), {_DELIVERY} || ': ' || packet_id FROM deliveries"
        " WHERE packet_id NOT BETWEEN 0 AND 65535",
    ),
    (
        "packet-id-twice",
        "two deliveries of one session have the same packet identifier",
        "SELECT count(*), 'owner ' || owner || ', packet id ' || packet_id FROM"
        " (SELECT owner, packet_id FROM deliveries WHERE packet_id != 0"
        " GROUP BY owner, packet_id HAVING count(*) > 1)",
    ),
    (
        "delivery-state",
        "a delivery is in a state that doesn't exist",
        f"SELECT count(*), {_DELIVERY} || ': state ' || state || ', QoS ' || qos FROM deliveries"
        " WHERE state < 0 OR (state & 3) = 3 OR qos NOT BETWEEN 0 AND 2"
        " OR (state & 3) = 2 AND qos != 2",
    ),
    (
        "delivery-unsent",
        "a delivery was sent and has no packet identifier, or has one and wasn't sent",
        f"SELECT count(*), {_DELIVERY} || ': state ' || state || ', packet id ' || packet_id"
        " FROM deliveries WHERE ((state & 3) = 0) != (packet_id = 0)"
        " AND owner IN (SELECT number FROM sessions)",
    ),
    (
        "share-sent",
        "what waits in a shared group's own queue has a packet identifier",
        f"SELECT count(*), {_DELIVERY} || ': packet id ' || packet_id FROM deliveries"
        " WHERE packet_id != 0 AND owner IN (SELECT number FROM shares)",
    ),
    (
        "subscription-without-session",
        "a subscription belongs to nobody",
        "SELECT count(*), 'client ' || client || ', filter ' || filter FROM subscriptions"
        f" WHERE {_STRANGER}",
    ),
    (
        "will-without-session",
        "a will belongs to nobody",
        f"SELECT count(*), 'client ' || client FROM wills WHERE {_STRANGER}",
    ),
    (
        "inbound-without-session",
        "a QoS 2 exchange belongs to nobody",
        "SELECT count(*), 'client ' || client || ', packet id ' || packet_id FROM inbound"
        f" WHERE {_STRANGER}",
    ),
    (
        "inbound-packet-id",
        "the packet identifier of a QoS 2 exchange is none",
        "SELECT count(*), 'client ' || client || ': ' || packet_id FROM inbound"
        " WHERE packet_id NOT BETWEEN 1 AND 65535",
    ),
)


def check(path: Path, progress: Progress = silent) -> Document:
    """Whether the database is whole, and its rows say nothing that can't be."""
    find(path)
    document: Document = {
        "schema": CHECK,
        "file": str(path),
        **use_of(path).document(),
        **_sizes(path),
        "schema_version": None,
        "schema_version_known": schema.VERSION,
        "checks": 0,
        "findings": [],
        "notes": [],
    }
    try:
        document.update(reading(path, lambda db: _check(db, path, progress)))
    except Damaged as error:
        document["checks"] = 1
        document["findings"] = [_finding("pages", _DAMAGED, 1, str(error))]
        document["notes"] = [_UNSEEN]
    newer = (document["schema_version"] or 0) > schema.VERSION
    document["verdict"] = "bad" if document["findings"] else "newer" if newer else "good"
    return document


def _check(db: sqlite3.Connection, path: Path, progress: Progress) -> Document:
    version = version_in(db, path)
    notes: list[str] = []
    part: Document = {"schema_version": version, "checks": 1, "findings": [], "notes": notes}
    progress("pages", 0, 0)
    damages = damages_in(db)
    if damages:
        part["findings"] = [_finding("pages", _DAMAGED, len(damages), damages[0])]
        notes.append(_UNSEEN)
    elif version > schema.VERSION:
        notes.append(
            f"it was written by a newer mqttd (schema {version}, this one knows {schema.VERSION}):"
            " only its pages were checked, and this mqttd won't start on it"
        )
    elif version < schema.VERSION:
        notes.append(
            f"it will be migrated from schema {version} to {schema.VERSION} at the next start;"
            " until then only its pages can be checked"
        )
    else:
        with snapshot(db):
            part["findings"] = _layout(db) or _invariants(db, progress, notes)
        part["checks"] += 1 + len(_INVARIANTS)
    return part


def damages_in(db: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the pages, up to a hundred."""
    rows = [row[0].splitlines() for row in db.execute("PRAGMA integrity_check")]
    # A row may begin with a line that only says "*** in database main ***".
    lines = [line for row in rows for line in row if not line.startswith("***")]
    return [] if lines == ["ok"] else lines or ["integrity_check failed"]


def _layout(db: sqlite3.Connection) -> list[Document]:
    """Tables that aren't what this version makes."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        schema.migrate(fresh)
        wanted = _tables(fresh)
    found = _tables(db)
    wrong = [
        f"{name} is {'not as it should be' if name in found else 'missing'}"
        for name, sql in wanted.items()
        if found.get(name) != sql
    ]
    if not wrong:
        return []
    meaning = "the tables aren't those of this schema version, so the rows weren't looked at"
    return [_finding("tables", meaning, len(wrong), wrong[0])]


def _tables(db: sqlite3.Connection) -> dict[str, str]:
    query = "SELECT type || ' ' || name, sql FROM main.sqlite_schema WHERE sql IS NOT NULL"
    return {name: " ".join(sql.split()) for name, sql in db.execute(query)}


def _invariants(db: sqlite3.Connection, progress: Progress, notes: list[str]) -> list[Document]:
    progress("rows", 0, len(_INVARIANTS))
    for statement in _COUNT_DELIVERIES:
        db.execute(statement)
    findings: list[Document] = []
    for number, (name, meaning, query) in enumerate(_INVARIANTS):
        progress("rows", number, len(_INVARIANTS))
        count, example = db.execute(query).fetchone()
        if count:
            findings.append(_finding(name, meaning, count, example))
    ended: int = one(db, _ENDED)[0]
    if ended:
        notes.append(
            f"{ended:,} deliveries are of sessions that have ended; the broker deletes them"
        )
    return findings


def _finding(name: str, meaning: str, count: int, example: str) -> Document:
    return {"check": name, "meaning": meaning, "count": count, "example": example}


# Counting.

# One walk along the tree, sorted by owner; the rest is a look-up for each of these.
_QUEUES: Final = """\
    SELECT owner, n, sent, released, oldest, client, name, filter FROM (
        SELECT owner, count(*) AS n, sum((state & 3) = 1) AS sent, sum((state & 3) = 2) AS released,
            min(message) AS oldest
        FROM deliveries GROUP BY owner
    ) LEFT JOIN sessions ON sessions.number = owner LEFT JOIN shares ON shares.number = owner"""


def stats(path: Path, top: int = 10, now: float | None = None) -> Document:
    """How much is in the database, and where; the `top` deepest queues one by one."""
    find(path)
    at = time.time() if now is None else now
    return {
        "schema": STATS,
        "file": str(path),
        "at": at,
        **use_of(path).document(),
        **_sizes(path),
        **reading(path, lambda db: _stats(db, path, top, at)),
    }


def _sizes(path: Path) -> Document:
    return {"file_bytes": size_of(str(path)), "log_bytes": size_of(f"{path}-wal")}


def _stats(db: sqlite3.Connection, path: Path, top: int, now: float) -> Document:
    with snapshot(db):
        version = version_in(db, path)
        if version < schema.VERSION:
            raise Unusable(
                f"{path}: has schema {version}, and only {schema.VERSION} can be counted; the next"
                " start of the broker migrates it"
            )
        if version > schema.VERSION:
            raise Unusable(
                f"{path}: was written by a newer mqttd (schema {version}, this one knows"
                f" {schema.VERSION}): use that one"
            )
        if wrong := _layout(db):
            raise Damaged(f"{path}: {wrong[0]['meaning']} ({wrong[0]['example']})")
        total, connected, soon = one(
            db,
            "SELECT count(*), coalesce(sum(connected), 0), coalesce(sum(expires_at < ?), 0)"
            " FROM sessions",
            now + SOON_S,
        )
        kept, kept_bytes = one(db, "SELECT count(*), total(length(payload)) FROM retained")
        tables, rows, row_bytes = one(
            db, "SELECT count(DISTINCT name), count(*), total(length(value)) FROM plugin_rows"
        )
        messages, message_bytes = one(db, "SELECT count(*), total(length(payload)) FROM messages")
        # Identifiers grow, so the first is the oldest; its instant may lie behind a long payload.
        first = db.execute("SELECT stored_at FROM messages ORDER BY id LIMIT 1").fetchone()
        return {
            "schema_version": version,
            "page_bytes": one(db, "PRAGMA page_size")[0],
            "pages": one(db, "PRAGMA page_count")[0],
            "free_pages": one(db, "PRAGMA freelist_count")[0],
            "sessions": {"total": total, "connected": connected, "expiring_soon": soon},
            "subscriptions": one(db, "SELECT count(*) FROM subscriptions")[0],
            "shared_groups": one(db, "SELECT count(*) FROM shares")[0],
            "wills": one(db, "SELECT count(*) FROM wills")[0],
            "inbound": one(db, "SELECT count(*) FROM inbound")[0],
            "retained": {"count": kept, "bytes": int(kept_bytes)},
            "plugin_rows": {"tables": tables, "count": rows, "bytes": int(row_bytes)},
            "messages": {
                "count": messages,
                "bytes": int(message_bytes),
                "oldest_stored_at": first[0] if first else None,
                "oldest_age_s": max(now - first[0], 0.0) if first else None,
            },
            **_queues(db, top, now),
        }


def one(db: sqlite3.Connection, query: str, *values: float) -> tuple[Any, ...]:
    row: tuple[Any, ...] = db.execute(query, values).fetchone()
    return row


def _queues(db: sqlite3.Connection, top: int, now: float) -> Document:
    totals = dict.fromkeys(("total", "queued", "sent", "released", "ended"), 0)

    def owned() -> Iterator[tuple[Any, ...]]:
        for row in db.execute(_QUEUES):
            _, count, sent, released, _, client, name, _ = row
            if client is None and name is None:
                totals["ended"] += count  # of sessions that are over; deleted piece by piece
                continue
            totals["total"] += count
            totals["sent"] += sent
            totals["released"] += released
            yield row

    deepest = nlargest(max(top, 1), owned(), key=lambda row: row[1])[:top]
    totals["queued"] = totals["total"] - totals["sent"] - totals["released"]
    sizes = _payloads(db, [row[0] for row in deepest])
    queues: list[Document] = []
    for owner, count, _, _, oldest, client, name, topic_filter in deepest:
        since = db.execute("SELECT stored_at FROM messages WHERE id = ?", (oldest,)).fetchone()
        queues.append(
            {
                "client": client,
                "share": None if client is not None else f"$share/{name}/{topic_filter}",
                "messages": count,
                "bytes": sizes.get(owner, 0),
                "oldest_age_s": max(now - since[0], 0.0) if since else None,
            }
        )
    return {"deliveries": totals, "queues": queues}


def _payloads(db: sqlite3.Connection, owners: list[int]) -> dict[int, int]:
    """The bytes of payload that wait for each of some owners, in one more walk."""
    db.execute("CREATE TEMP TABLE deepest (owner INTEGER PRIMARY KEY)")
    db.executemany("INSERT INTO deepest VALUES (?)", [(owner,) for owner in owners])
    query = (
        "SELECT owner, total(length(payload)) FROM deliveries CROSS JOIN messages ON id = message"
        " WHERE owner IN (SELECT owner FROM deepest) GROUP BY owner"
    )
    return {owner: int(size) for owner, size in db.execute(query)}
