"""Messages that ended undelivered, for somebody who wants to know of them: dead letters.

Owns: `Letter`, one such message with the reason and for whom it was; `Letters`, those that nobody
has looked at yet. `Broker.bury` empties the list, in the tick of the drop and before the batch
with that drop is taken, and publishes what the hook makes of each.

Must not know: topics of dead letters, plugins, sessions. Without anybody who asks there is no
`Letters`, and a drop costs one comparison more.

Invariants: a message that is a dead letter itself is counted and never in the list, so that there
is no loop whatever it is sent to. It is known by its mark, a user property, and by having no client
for its publisher: the mark of a client's own PUBLISH says nothing, and is passed on as any user
property is. The list is bounded; what isn't in it is counted, be it that the list was full or that
only the store had the message at hand.
"""

from typing import Final

from mqttd.core.message import OWED, Message

MARK: Final = "mqttd-dead-letter"  # the user property that a dead letter has
MAX_LETTERS: Final = 10_000  # between two looks at the list
_MARK: Final = b"\x26\x00\x11mqttd-dead-letter\x00"


class Letter:
    """A message that ended undelivered."""

    def __init__(self, reason: str, client_id: str, group: str, message: Message) -> None:
        self.reason = reason
        self.client_id = client_id  # "" where no client had it yet
        self.group = group  # the shared subscription that it came through, "" for none
        self.message = message


class Letters:
    """What waits to be looked at. `reasons` are those that somebody wants."""

    def __init__(self, reasons: frozenset[str]) -> None:
        self.reasons = reasons
        self.published: int = 0
        self.again: int = 0  # dead letters that ended undelivered themselves
        self.lost: int = 0  # the list was full
        self.unread: int = 0  # only the store had them
        self.waiting: list[Letter] = []

    def add(self, reason: str, client_id: str, group: str, message: Message) -> None:
        if reason not in self.reasons:
            return
        if not message.origin and _MARK in message.properties:
            self.again += 1
        elif len(self.waiting) >= MAX_LETTERS:
            self.lost += 1
        else:
            message.owed = OWED
            self.waiting.append(Letter(reason, client_id, group, message))

    def miss(self, reason: str, number: int) -> None:
        """Messages that nobody has at hand ended."""
        if reason in self.reasons:
            self.unread += number

    def take(self) -> list[Letter]:
        waiting = self.waiting
        self.waiting = []
        return waiting
