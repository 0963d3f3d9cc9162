"""The SQL: what a transaction writes, what a start reads, a page of a queue, housekeeping.

Owns: every statement on the tables of `mqttd.store.schema` that runs while a broker does, and how
rows become the core's objects again.

Must not know: files, threads, when any of this happens, what a commit promises. It is called with a
connection, inside of a transaction where it writes.

Invariants: rows are written many to a statement, since each statement gives the interpreter's lock
away and a busy loop returns it late; nothing here costs more than its slice of rows, but for
`read`, which runs before anybody is connected.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final

from mqttd.core.inflight import Delivery
from mqttd.core.message import Message
from mqttd.core.packets import Will
from mqttd.core.restore import Restorer, stored_delivery
from mqttd.store.rows import DELIVERY_WIDTH, MESSAGE_WIDTH, STATE_BITS, Changes, Row, Value

_GROUPS: Final = (256, 64, 16, 4, 1)  # rows in one statement
_ROW_BYTES: Final = 128
_READ_ROWS: Final = 128
_STATE: Final = (1 << STATE_BITS) - 1
FIRST: Final = -(1 << 62)
"""Below every serial."""

PageRow = tuple[int, int, int, int, int, int, bytes, str, bytes, int, int, bytes, float, str]
_PAGE: Final = (
    "SELECT d.serial, d.message, d.shared, d.state, d.qos, d.retain, d.identifiers,"
    " m.topic, m.payload, m.qos, m.retain, m.properties, m.expires_at, m.origin"
    " FROM deliveries AS d CROSS JOIN messages AS m ON m.id = d.message WHERE d.serial IN ("
)


# Writing.


def apply(db: sqlite3.Connection, changes: Changes) -> int:
    """Every change of one transaction; returns roughly how many bytes that are."""
    ended = list(changes.ended)
    for table in ("subscriptions", "inbound", "wills", "sessions"):
        _delete(db, table, "client", ended)
    _put(db, "INSERT OR REPLACE INTO sessions VALUES ", 7, _flat(changes.sessions.values()))
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
        _flat(row for row in rows if row is not None),
    )
    if changes.inbound:
        _apply_inbound(db, changes)
    _replace(db, "retained", "topic", 6, changes.retained)
    for key, share in changes.shares.items():
        db.execute("DELETE FROM shares WHERE name = ? AND filter = ?", key)
        if share is not None:
            db.execute("INSERT INTO shares VALUES (?, ?, ?)", share)
    if changes.plugin_rows:
        _apply_plugin_rows(db, changes)
    if changes.reserved:
        reserve(db, changes.reserved)
    settle(db, changes.settled, changes.done_messages, changes.left_messages)
    _put(db, "INSERT INTO messages VALUES ", MESSAGE_WIDTH, changes.messages)
    _put(db, "INSERT INTO refs VALUES ", 2, changes.refs)
    _put(db, "INSERT INTO deliveries VALUES ", DELIVERY_WIDTH, changes.deliveries)
    _put(
        db,
        "WITH new (serial, packet_id, state) AS (VALUES ",
        3,
        _flat((serial, *moved) for serial, moved in changes.moved.items()),
        ") UPDATE deliveries SET packet_id = new.packet_id, state = new.state"
        " FROM new WHERE deliveries.serial = new.serial",
    )
    forget(db, changes.forgotten)
    size = _bytes_in(changes.messages[2::MESSAGE_WIDTH])
    others = (changes.retained.values(), changes.wills.values(), changes.plugin_rows.values())
    for row in chain.from_iterable(others):
        size += _bytes_in(row or ())
    count = len(changes.messages) // MESSAGE_WIDTH + len(changes.deliveries) // DELIVERY_WIDTH
    count += len(changes.moved) + len(changes.settled) + len(changes.retained)
    count += len(changes.plugin_rows)
    return size + _ROW_BYTES * count


def reserve(db: sqlite3.Connection, below: int) -> None:
    """Note that serials below this may have been given."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('serials', ?)", (below,))


def _bytes_in(values: Iterable[Value]) -> int:
    return sum(len(each) for each in values if isinstance(each, bytes | bytearray))


def _apply_inbound(db: sqlite3.Connection, changes: Changes) -> None:
    begun: list[Value] = []
    over: list[Value] = []
    for client, exchanges in changes.inbound.items():
        for packet_id, there in exchanges.items():
            (begun if there else over).extend((client, packet_id))
    _put(
        db,
        "DELETE FROM inbound WHERE rowid IN (WITH over (c, p) AS (VALUES ",
        2,
        over,
        ") SELECT i.rowid FROM over CROSS JOIN inbound AS i"
        " WHERE i.client = c AND i.packet_id = p)",
    )
    _put(db, "INSERT OR REPLACE INTO inbound VALUES ", 2, begun)


def _apply_plugin_rows(db: sqlite3.Connection, changes: Changes) -> None:
    rows = changes.plugin_rows
    # A bare `IN (VALUES ...)` on two columns would walk the whole table.
    _put(
        db,
        "WITH gone (n, k) AS (VALUES ",
        2,
        _flat(key for key, row in rows.items() if row is None),
        ") DELETE FROM plugin_rows WHERE (name, key) IN (SELECT n, k FROM gone)",
    )
    there = _flat(row for row in rows.values() if row is not None)
    _put(db, "INSERT OR REPLACE INTO plugin_rows VALUES ", 3, there)


def settle(
    db: sqlite3.Connection,
    settled: Sequence[int],
    done: Iterable[int],
    left: dict[int, int],
) -> None:
    """Delete deliveries by their serials, and the messages that nobody waits for any more.

    `done` are rows of messages that only one delivery had; `left` says of shared ones how many
    deliveries fewer they have.
    """
    _delete(db, "deliveries", "serial", settled)
    _delete(db, "messages", "id", list(done))
    fewer = [(row, count) for row, count in left.items() if count]
    if fewer:
        _put(
            db,
            "WITH fewer (m, n) AS (VALUES ",
            2,
            _flat(fewer),
            ") UPDATE refs SET left = left - fewer.n FROM fewer WHERE refs.message = fewer.m",
        )
        touched = [row for row, _ in fewer]
        over = " IN (VALUES "
        _put(
            db,
            "DELETE FROM messages WHERE id IN (SELECT message FROM refs WHERE left <= 0"
            " AND message" + over,
            1,
            touched,
            "))",
        )
        _put(db, "DELETE FROM refs WHERE left <= 0 AND message" + over, 1, touched, ")")


def forget(db: sqlite3.Connection, serials: Sequence[int]) -> None:
    """Settle deliveries of which no more is known than the serials."""
    done: list[int] = []
    left: dict[int, int] = {}
    found: list[int] = []
    for at in range(0, len(serials), _READ_ROWS):
        part = serials[at : at + _READ_ROWS]
        for serial, message, shared in db.execute(
            "SELECT serial, message, shared FROM deliveries WHERE serial IN (" + _marks(part),
            part,
        ):
            found.append(serial)
            if shared:
                left[message] = left.get(message, 0) + 1
            else:
                done.append(message)
    settle(db, found, done, left)


def _marks(values: Sequence[int]) -> str:
    return ",".join("?" * len(values)) + ")"


def _replace(
    db: sqlite3.Connection, table: str, key: str, width: int, rows: dict[str, Row | None]
) -> None:
    """Rows that are there or not, one for each key."""
    _delete(db, table, key, [name for name, row in rows.items() if row is None])
    there = _flat(row for row in rows.values() if row is not None)
    _put(db, f"INSERT OR REPLACE INTO {table} VALUES ", width, there)


def _delete(db: sqlite3.Connection, table: str, key: str, values: Sequence[str | int]) -> None:
    _put(db, f"DELETE FROM {table} WHERE {key} IN (VALUES ", 1, values, ")")


def _flat(rows: Iterable[Iterable[Value]]) -> list[Value]:
    return list(chain.from_iterable(rows))


def _put(
    db: sqlite3.Connection, head: str, width: int, values: Sequence[Value], tail: str = ""
) -> None:
    """Run a statement over rows that stand flat in `values`, as many at a time as can be."""
    left = len(values) // width
    if not left:
        return
    at = 0
    marks = "(" + ",".join("?" * width) + ")"
    for group in _GROUPS:
        if left < group:
            continue
        statement = head + ",".join([marks] * group) + tail
        while left >= group:
            end = at + group * width
            db.execute(statement, values[at:end])
            at = end
            left -= group


# Reading at a start.


def read(db: sqlite3.Connection, restorer: Restorer, offset: float) -> tuple[array[int], int]:
    """Put everything into a fresh broker, `offset` being wall clock time less its own.

    Returns the serials of deliveries that are nobody's, and the first row of `messages` that is
    free. Of what waits in queues only the serials are read.
    """

    def instant(wall: float | None) -> float:
        return _instant(wall, offset)

    number = 0
    for client, number_of, user, expiry, connected, expires_at, will_at in db.execute(
        "SELECT client, number, user, expiry, connected, expires_at, will_at FROM sessions"
    ):
        number = max(number, number_of)
        restorer.session(
            client, number_of, user, expiry, bool(connected), instant(expires_at), instant(will_at)
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
    for number_of, name, topic_filter in db.execute("SELECT number, name, filter FROM shares"):
        number = max(number, number_of)
        restorer.group(name, topic_filter, number_of)
    garbage = array("q")
    _read_windows(db, restorer, instant, garbage)
    for serial, owner in db.execute(
        "SELECT serial, owner FROM deliveries WHERE packet_id = 0 ORDER BY serial"
    ):
        if not restorer.queued(owner, serial):
            garbage.append(serial)
    for topic, payload, qos, properties, expires_at, origin in db.execute(
        "SELECT topic, payload, qos, properties, expires_at, origin FROM retained"
    ):
        restorer.retained(
            _message(topic, payload, qos, True, properties, instant(expires_at), origin)
        )
    for name, key, value in db.execute("SELECT name, key, value FROM plugin_rows"):
        restorer.row(name, key, value)
    last, first, owner, row = db.execute(
        "SELECT coalesce(max(serial), 0), coalesce(min(serial), 0), coalesce(max(owner), 0),"
        " (SELECT coalesce(max(id), 0) FROM messages) FROM deliveries"
    ).fetchone()
    reserved = db.execute("SELECT value FROM meta WHERE key = 'serials'").fetchone()
    next_serial = max(last + 1, 1 if reserved is None else reserved[0])
    restorer.finish(max(number, owner) + 1, next_serial, min(first, 0) - 1)
    return garbage, row + 1


def _read_windows(
    db: sqlite3.Connection,
    restorer: Restorer,
    instant: Callable[[float | None], float],
    garbage: array[int],
) -> None:
    """What was sent and not acknowledged, with its messages."""
    messages: dict[int, Message] = {}
    for (
        owner,
        serial,
        number,
        shared,
        share,
        packet_id,
        state,
        qos,
        retain,
        identifiers,
    ) in db.execute(
        "SELECT owner, serial, message, shared, share, packet_id, state, qos, retain,"
        " identifiers FROM deliveries WHERE packet_id != 0 ORDER BY serial"
    ):
        message = messages.get(number)
        if message is None:
            row = db.execute(
                "SELECT topic, payload, qos, retain, properties, expires_at, origin FROM messages"
                " WHERE id = ?",
                (number,),
            ).fetchone()
            if row is None:
                raise sqlite3.DatabaseError(f"is damaged: delivery {serial} has lost its message")
            topic, payload, its_qos, its_retain, properties, expires_at, origin = row
            message = _message(
                topic, payload, its_qos, bool(its_retain), properties, instant(expires_at), origin
            )
            if shared:
                messages[number] = message
        tries = state >> STATE_BITS
        delivery = stored_delivery(
            message, serial, number, bool(shared), qos, bool(retain), identifiers, tries
        )
        if not restorer.sent(owner, delivery, share, packet_id, state & _STATE):
            garbage.append(serial)


# Reading while the broker runs.


def read_page(db: sqlite3.Connection, serials: Sequence[int], most_bytes: int) -> list[PageRow]:
    """Deliveries by their serials, which grow; cut short where that is much payload."""
    rows: list[PageRow] = []
    size = 0
    for at in range(0, len(serials), _READ_ROWS):
        part = serials[at : at + _READ_ROWS]
        cursor = db.execute(_PAGE + _marks(part) + " ORDER BY d.serial", part)
        for row in cursor:
            size += len(row[8])
            rows.append(row)
            if size >= most_bytes:
                cursor.close()
                return rows
    return rows


def deliveries_of(rows: Iterable[PageRow], offset: float) -> list[Delivery]:
    """What `read_page` read, as the core's objects."""
    found: list[Delivery] = []
    names: dict[str, str] = {}  # one object for all messages of a topic, of a publisher
    for row in rows:
        serial, number, shared, state, qos, retain, identifiers = row[:7]
        topic, payload, its_qos, its_retain, properties, expires_at, origin = row[7:]
        topic = names.setdefault(topic, topic)
        origin = names.setdefault(origin, origin)
        at = _instant(expires_at, offset)
        message = _message(topic, payload, its_qos, bool(its_retain), properties, at, origin)
        found.append(
            stored_delivery(
                message,
                serial,
                number,
                bool(shared),
                qos,
                bool(retain),
                identifiers,
                state >> STATE_BITS,
            )
        )
    return found


# Housekeeping, a slice at a time.


def has_expired(db: sqlite3.Connection, wall: float) -> bool:
    """There is a message that nobody should get any more."""
    found = db.execute(
        "SELECT 1 FROM messages WHERE expires_at > 0 AND expires_at <= ? LIMIT 1", (wall,)
    )
    return found.fetchone() is not None


def find_expired(
    db: sqlite3.Connection, after: int, limit: int, wall: float
) -> tuple[list[tuple[int, int]], int | None]:
    """Look through `limit` deliveries above the serial `after` for messages that expired.

    Returns owner and serial of each, and the serial to go on from; None at the end.
    """
    rows = db.execute(
        "SELECT d.owner, d.serial, m.expires_at FROM deliveries AS d"
        " CROSS JOIN messages AS m ON m.id = d.message"
        " WHERE d.serial > ? ORDER BY d.serial LIMIT ?",
        (after, limit),
    ).fetchall()
    expired = [row[:2] for row in rows if 0 < row[2] <= wall]
    return expired, rows[-1][1] if len(rows) == limit else None


def _instant(wall: float | None, offset: float) -> float:
    """The core's clock for a wall clock time; 0.0 for none, so never that for an instant."""
    return max(wall - offset, 1e-9) if wall else 0.0


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
