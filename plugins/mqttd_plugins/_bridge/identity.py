"""Who a message is, over every restart, and which brokers it has passed.

A consumer that gets a message twice has to see that it is the same one, so the id may not depend on
which process sends it. A message that has an id keeps it: it came over a bridge. Any other gets
`ORIGIN-NUMBER`: the bridge's own random origin, and the number by which the broker knows the
delivery, the same over restarts. So does one with an id of this very origin, which is what somebody
copied or made up: the next numbers can be guessed, and whoever published one of them first would
make consumers, or SQS itself, take another's message for a copy.

Where there is no such number (a shared subscription, a broker that keeps nothing) the id is
`ORIGIN-BOOT-N`, the number of this start and a counter. Before it is sent it is written into the
plugin's table with a digest of the message; when the message is acknowledged the row goes, in the
same commit. What is redelivered is looked up by its digest, and gets the id of its row.

That is enough because of what the broker promises. Whoever finds a row finds the delivery, since
it is written first. What was sent and not acknowledged is redelivered first, with the DUP flag,
and never expires; so a row is claimed by the message that it was made for, or by one that has the
same topic, payload and properties and was in flight as well: which of the two has which id makes
no difference to anybody. Rows that nobody claimed by then belong to deliveries that are gone.

One row a message, though many to a row would be cheaper: such a row would name messages that were
acknowledged, and one that looks the same, whose own row a crash has undone, would take an id that a
consumer has seen.

A message at QoS 0 gets an id and no row: it doesn't outlast the process.

Hops: `mqttd-via` holds the origins that a message has passed, "a,b". What comes in with an origin
of this broker in it has been here.

Must not know: connections, rules, the order of anything.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Final

from mqttd.api import Message, MessageProperties, Received, Table

ID: Final = "mqttd-id"
VIA: Final = "mqttd-via"
MAX_HOPS: Final = 8
_BOOT: Final = "boot"
_ORIGIN: Final = "origin"


class Ticket:
    """The id of one message in the outbox. `durable`: to be awaited before it is sent."""

    __slots__ = ("durable", "id", "row")

    def __init__(self, id: str, row: str = "", durable: Awaitable[None] | None = None) -> None:
        self.id = id
        self.row = row  # key in the table of ids; "": there is none
        self.durable = durable


class Identity:
    """The ids that one bridge gives."""

    def __init__(self, state: Table, ids: Table, shared: bool = False) -> None:
        """`shared`: some messages come through a group, which redelivers without the DUP flag."""
        self.origin = ""
        self._state = state
        self._ids = ids
        self._shared = shared
        self._boot = 0
        self._last = 0
        self._unclaimed: dict[bytes, deque[str]] = {}

    async def open(self) -> None:
        """Before the first message: who this is, which start, what was under way."""
        origin = self._state.get(_ORIGIN)
        if origin is None:
            origin = secrets.token_hex(5).encode()
            await self._state.set(_ORIGIN, origin)
        self.origin = origin.decode()
        self._boot = int(self._state.get(_BOOT) or b"0") + 1
        self._last = 0
        await self._state.set(_BOOT, str(self._boot).encode())
        self._unclaimed = {}
        for row, digest in sorted(self._ids.items(), key=lambda each: _order(each[0])):
            self._unclaimed.setdefault(digest, deque()).append(row)

    def ticket(self, received: Received) -> Ticket:
        """The id of a message that came out of the outbox."""
        message = received.message
        own = id_of(message.properties)
        if own and not own.startswith(f"{self.origin}-"):
            return Ticket(own)
        if received.number:
            return Ticket(f"{self.origin}-{received.number:x}")
        if message.qos == 0:
            return Ticket(self._name(self._next()))
        digest = digest_of(message)
        if self._unclaimed:
            if received.duplicate or self._shared:
                rows = self._unclaimed.get(digest)
                if rows:
                    row = rows.popleft()
                    if not rows:
                        del self._unclaimed[digest]
                    return Ticket(self._name(row), row)
            if not received.duplicate and not self._shared:
                self._forget_unclaimed()
        row = self._next()
        return Ticket(self._name(row), row, self._ids.set(row, digest))

    def settled(self, ticket: Ticket) -> None:
        """Call it in the same turn of the loop as the acknowledgement: both are one commit."""
        if ticket.row:
            self._ids.delete(ticket.row)

    def _next(self) -> str:
        self._last += 1
        return f"{self._boot:x}-{self._last:x}"

    def _name(self, row: str) -> str:
        return f"{self.origin}-{row}"

    def _forget_unclaimed(self) -> None:
        """Everything that was in flight has come by now."""
        for rows in self._unclaimed.values():
            for row in rows:
                self._ids.delete(row)
        self._unclaimed = {}


def _order(row: str) -> tuple[int, int]:
    boot, _, number = row.partition("-")
    return int(boot, 16), int(number, 16)


def digest_of(message: Message) -> bytes:
    """What tells messages apart: all that a receiver could see, but for the time left."""
    hashed = hashlib.blake2b(digest_size=16)
    topic = message.topic.encode()
    block = message.block
    hashed.update(b"%d %d %d %d " % (len(topic), len(block), message.qos, message.retain))
    hashed.update(topic)
    hashed.update(block)
    hashed.update(message.payload)
    return hashed.digest()


def id_of(properties: MessageProperties) -> str:
    """The id that a message brought along; "" where it has none."""
    return _first(properties, ID)


def hops_of(properties: MessageProperties) -> list[str]:
    """The origins that a message has passed."""
    via = _first(properties, VIA)
    return via.split(",") if via else []


def via_with(hops: list[str], origin: str) -> str:
    """The list with one more hop."""
    return ",".join(hops if hops[-1:] == [origin] else [*hops, origin])


def stamped(properties: MessageProperties, id: str, via: str) -> MessageProperties:
    """The properties with an id and the hops, for systems that carry user properties."""
    ours = [(ID, id)] if id else []
    if via:
        ours.append((VIA, via))
    return with_user_properties(properties, ours)


def with_user_properties(
    properties: MessageProperties, more: Iterable[tuple[str, str]]
) -> MessageProperties:
    """The properties with some user properties set: one of the same name goes."""
    added = list(more)
    names = {name for name, _ in added}
    kept = [pair for pair in properties.user_properties if pair[0] not in names]
    return MessageProperties(
        properties.payload_format_indicator,
        properties.content_type,
        properties.response_topic,
        properties.correlation_data,
        (*kept, *added),
    )


def _first(properties: MessageProperties, wanted: str) -> str:
    for name, value in properties.user_properties:
        if name == wanted:
            return value
    return ""
