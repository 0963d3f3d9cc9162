"""Wills that hooks are asked about, kept until what came of them is kept.

A will that is due has left its session. Where a hook takes its time, or isn't there yet since the
broker has only been loaded, a crash would lose it: so it is a row of a table of its own meanwhile,
and goes out of it in the batch that holds what became of it. A broker that finds such rows asks
again: a will may be published twice that way, and is never lost.

Owns: the rows, and what is in one: a CONNECT, which has all that makes a will, and whose it is.

Must not know: hooks, when a will is due, who publishes it.

Invariants: of a session that the store doesn't have no will is kept; a message that isn't settled
stands in `_keys`; a row that can't be read is left alone, and nobody is asked about it.
"""

from typing import Final

from mqttd.core import encode, spec
from mqttd.core.decode import decode_connect
from mqttd.core.errors import ProtocolError
from mqttd.core.framer import Framer
from mqttd.core.message import Message
from mqttd.core.packets import Connect, Will
from mqttd.core.tables import Tables

TABLE: Final = "$wills"  # no plugin can be called so
_LONGEST: Final = spec.MAX_VARINT + 5  # bytes of a packet


class Asked:
    """A will that somebody still has to be asked about; `key` is that of its row, "" for none."""

    def __init__(self, client_id: str, owner: str | None, will: Will, key: str) -> None:
        self.client_id = client_id
        self.owner = owner
        self.will = will
        self.key = key


class Wills:
    """The wills of one broker that wait for an answer."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._keys: dict[Message, str] = {}  # of those that hooks have been asked about
        self._last: int = 0  # key given to a row

    def keep(self, asked: Asked) -> None:
        """Make a row of it."""
        if asked.key:
            return
        self._last += 1
        asked.key = str(self._last)
        connect = Connect(client_id=asked.client_id, will=asked.will, username=asked.owner)
        self._tables.set(TABLE, asked.key, encode.encode_connect(connect, spec.MQTT5))

    def wait(self, message: Message, asked: Asked) -> None:
        """The hooks have been asked about a message that is `asked`, and answer later."""
        if asked.key:
            self._keys[message] = asked.key

    def settle(self, message: Message) -> None:
        """What became of it is in the journal, or nothing is to become of it."""
        key = self._keys.pop(message, "")
        if key:
            self.drop(key)

    def drop(self, key: str) -> None:
        self._tables.drop(TABLE, key)

    def found(self) -> list[Asked]:
        """The rows that an earlier process left, in the order in which they were asked about."""
        found: dict[int, Asked] = {}
        for key, value in self._tables.items(TABLE):
            if not key.isdecimal():
                continue
            number = int(key)
            self._last = max(self._last, number)  # also of a row that can't be read
            asked = _read(key, value)
            if asked is not None:
                found[number] = asked
        return [found[number] for number in sorted(found)]


def _read(key: str, value: bytes) -> Asked | None:
    framer = Framer(_LONGEST)
    framer.feed(value)
    try:
        if not framer.next():
            return None
        connect = decode_connect(framer.data, framer.pos, framer.end)
    except ProtocolError:
        return None
    will = connect.will
    return None if will is None else Asked(connect.client_id, connect.username, will, key)
