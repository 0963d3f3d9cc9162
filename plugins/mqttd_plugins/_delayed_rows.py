"""Delayed messages as rows of a table.

Owns: the form of a row (a length, a header in JSON, the encoded properties, the payload), and what
of time it holds: when the message is due and when it expires, in seconds since 1970, with the spans
that both were at first.

Must not know: the table, when anything is published.

Invariants: a message comes back as it was, its properties byte for byte; a wall clock that was set
back meanwhile makes nothing wait longer than at first. The time that the broker was down counts,
for the wait as for the expiry.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from mqttd.api import Message

_LENGTH: Final = struct.Struct(">I")


class Waiting:
    """A message that waits, without its payload: that stays in the row. Instants are monotonic."""

    __slots__ = (
        "client_id",
        "due_at",
        "expires_at",
        "octets",
        "qos",
        "retain",
        "serial",
        "topic",
        "username",
    )

    def __init__(
        self,
        serial: int,
        message: Message,
        username: str | None,
        octets: int,
        due_at: float,
        expires_at: float | None,
    ) -> None:
        self.serial = serial
        self.client_id = message.client_id
        self.username = username
        self.topic = message.topic
        self.qos = message.qos
        self.retain = message.retain
        self.octets = octets  # of the whole row
        self.due_at = due_at
        self.expires_at = expires_at

    @property
    def key(self) -> str:
        return str(self.serial)

    def __lt__(self, other: Waiting) -> bool:
        return (self.due_at, self.serial) < (other.due_at, other.serial)


def to_row(message: Message, username: str | None, delay_s: float, epoch: float) -> bytes:
    """The row of a message that is due in `delay_s`; `epoch` is what the wall clock shows."""
    block = message.block
    header = json.dumps(
        {
            "topic": message.topic,
            "qos": message.qos,
            "retain": message.retain,
            "client_id": message.client_id,
            "username": username,
            "delay": delay_s,
            "due": epoch + delay_s,
            "expires": message.expires_in_s,
            "properties": len(block),
        }
    ).encode()
    return b"".join((_LENGTH.pack(len(header)), header, block, message.payload))


def from_row(key: str, row: bytes, now: float, epoch: float) -> Waiting:
    """What waits in a row. ValueError for one that is none."""
    header, message = _parts(row)
    try:
        delay_s, due = float(header["delay"]), float(header["due"])
        username = header.get("username")
    except (KeyError, TypeError) as error:
        raise ValueError(f"no delayed message: {error}") from None
    if not isinstance(username, str | None):
        raise ValueError("no delayed message: a user name that is none")
    since_s = max(epoch - (due - delay_s), 0.0)
    expires_at = None
    if message.expires_in_s is not None:
        expires_at = now + message.expires_in_s - since_s
    due_at = now + max(delay_s - since_s, 0.0)
    return Waiting(int(key), message, username, len(row), due_at, expires_at)


def message_of(row: bytes) -> Message:
    """The message itself, as it came. ValueError for a row that is none."""
    return _parts(row)[1]


def _parts(row: bytes) -> tuple[dict[str, Any], Message]:
    """The header, and the message that it belongs to."""
    try:
        (length,) = _LENGTH.unpack_from(row)
        at = _LENGTH.size + length
        header = json.loads(row[_LENGTH.size : at])
        end = at + header["properties"]
        message = Message(
            header["topic"],
            row[end:],
            header["qos"],
            header["retain"],
            expires_in_s=header["expires"],
            client_id=header["client_id"],
            block=row[at:end],
        )
        return header, message
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError(f"no delayed message: {error}") from None
