"""Tables of key and value that plugins keep, durable as all that the core keeps.

Owns: the rows, all of them in memory, and what of them goes into the journal. So a row becomes
durable in one order with the messages around it, and in one piece with those of its batch: where a
plugin takes a message out of its table and publishes it in one go, a crash leaves the row, or what
was queued and retained of the message.

Must not know: whose table it is, what a value means, the store.

Invariants: a table that is in `rows` has a row; `rows` is what the store has once the batch that is
being gathered is durable; what changes nothing is not recorded, and yet its barrier is that of the
change that made it so; nothing gets in that a store would choke on, since a store that failed
once takes nothing any more.

While `Journal.refusing` is set it is for the caller to turn away what would have to be stored, as
it is with a message.
"""

from typing import Final

from mqttd.core.journal import TABLE_DROP, TABLE_SET, Journal

MAX_NAME: Final = 65535  # bytes of a table's name, and of a key, as of a topic or a client id
MAX_VALUE: Final = 512 << 20  # bytes: two of the largest packets, and well below SQLite's own limit


class Tables:
    """Rows by table and key. A barrier is the number of a journal batch, 0: nothing to wait for."""

    def __init__(self, journal: Journal) -> None:
        self.rows: dict[str, dict[str, bytes]] = {}
        self._journal = journal

    def get(self, table: str, key: str) -> bytes | None:
        """The value, or None where there is no such row."""
        rows = self.rows.get(table)
        return None if rows is None else rows.get(key)

    def items(self, table: str) -> list[tuple[str, bytes]]:
        """Every row of a table, in no order that would outlast the process."""
        rows = self.rows.get(table)
        return [] if rows is None else list(rows.items())

    def set(self, table: str, key: str, value: bytes) -> int:
        """Add or replace a row; returns the barrier.

        TypeError where a name isn't str or the value isn't bytes, ValueError where one of them is
        longer than a store takes or no valid Unicode. Then nothing was changed.
        """
        _check(table, key, value)
        if self.get(table, key) == value:
            return self._journal.last()  # there already, but perhaps not yet for good
        self.restore(table, key, value)
        return self._journal.record(TABLE_SET, table, key, 0, None, value)

    def drop(self, table: str, key: str) -> int:
        """Take a row out, if there is one; returns the barrier."""
        rows = self.rows.get(table)
        if rows is None or key not in rows:
            return self._journal.last()
        del rows[key]
        if not rows:
            del self.rows[table]
        return self._journal.record(TABLE_DROP, table, key)

    def clear(self, table: str) -> int:
        """Take every row of a table out; returns the barrier."""
        for key, _ in self.items(table):
            self.drop(table, key)
        return self._journal.last()

    def restore(self, table: str, key: str, value: bytes) -> None:
        """A row that the store has."""
        rows = self.rows.get(table)
        if rows is None:
            self.rows[table] = {key: value}
        else:
            rows[key] = value


def _check(table: object, key: object, value: object) -> None:
    """Refuse what a store can't take. Says how long a value is, never what is in it."""
    for what, text in (("the name of a table", table), ("a key", key)):
        if not isinstance(text, str):
            raise TypeError(f"{what} has to be a str, not {type(text).__name__}")
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} has to be valid Unicode: {error.reason}") from None
        if size > MAX_NAME:
            raise ValueError(f"{what} may have {MAX_NAME} bytes as UTF-8, this one has {size}")
    if not isinstance(value, bytes):
        raise TypeError(f"a value has to be bytes, not {type(value).__name__}")
    if len(value) > MAX_VALUE:
        raise ValueError(f"a value may have {MAX_VALUE} bytes, this one has {len(value)}")
