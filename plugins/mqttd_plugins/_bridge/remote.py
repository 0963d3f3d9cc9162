"""The port to a remote system: what a face implements, and what the core hands to it.

A `Remote` is one connection, from `connect` to its end; the next connection is a new object, so
nothing of an old one can be mistaken for news of the new one. The core calls `connect`, then
`consume` once if there are rules for the way in, then `send` as often as there is something, one
call after the other and never two at once. `wait` tells it that the connection is over.

Outward. `send` hands items to the connection in their order and returns as soon as more may be
handed over; that is how a remote system that lags slows the bridge down. Each item is answered
once by `done(item, None)` or `done(item, failure)`, during the call or any time later, in any
order. Items that were not answered when the connection ends are sent again on the next one.

Inward. A face maps what came to an `Incoming` and calls `Intake.put`. Before it reads on it awaits
`Intake.room`. `Incoming.settle` is called once, in the order of `put` for each key: with None when
the message is durable here (or is in the dead-letter topic), which is the moment to acknowledge it.

Failures say what they mean for the message, not which call raised them:

    Retry     may work later. For an item: it is tried again, alone, and dead-lettered after
              `tries`. For a connection: the next one may be better.
    Poison    will never work for this item: too large, refused for what is in it.
    Refused   will not work until somebody changes something: a wrong password, a queue that isn't
              there. For a connection: the bridge's state says so, with the rule's place, and it is
              tried again every `retry_most`. For an item: it waits as long, and no try is counted.

Must not know: sessions, acknowledgements inside the broker, metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence

from mqttd.api import Message
from mqttd_plugins._bridge.figures import REFUSED
from mqttd_plugins._bridge.rules import Rule


class Failure(Exception):
    """Why something didn't work. The text is for the operator, and never holds a secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(Failure):
    """It may work later."""


class Poison(Failure):
    """It will never work for this message. `cause` is a word of `figures`."""

    def __init__(self, reason: str, cause: str = REFUSED) -> None:
        super().__init__(reason)
        self.cause = cause


class Refused(Failure):
    """It won't work until somebody changes something. `place` is the rule's: `rules[2]`."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"{place}: {reason}" if place else reason)
        self.place = place


class Item:
    """One message on its way out by one rule. A face reads it and changes nothing."""

    __slots__ = (
        "headers",
        "id",
        "key",
        "message",
        "payload",
        "place",
        "qos",
        "rule",
        "seq",
        "target",
        "tries",
        "via",
    )

    def __init__(
        self,
        seq: int,
        rule: Rule,
        message: Message,
        *,
        id: str,
        via: str = "",
        target: str,
        key: str,
        headers: Sequence[tuple[str, str]] = (),
        payload: bytes | None = None,
        place: str | None = None,
    ) -> None:
        self.seq = seq  # grows in the order in which messages left the outbox
        self.rule = rule
        self.place = rule.place if place is None else place  # where the rule stands: rules[2]
        self.message = message  # after the rule's function; its topic is the one published to
        self.id = id  # the same for every copy of the message
        self.via = via  # the brokers it has passed, this one included: "a,b"
        self.target = target  # `to`, filled in
        self.key = key  # `key`, filled in: items of one key stay in order
        self.headers = headers  # `headers`, filled in
        self.payload = message.payload if payload is None else payload  # raw, or the envelope
        self.qos = min(message.qos, rule.qos)
        self.tries = 0  # how often it failed


Done = Callable[[Item, Failure | None], None]


class Incoming:
    """One message that came from the remote system, before its rule was applied.

    `message.topic` is the name it has there (topic, queue, stream), for `{topic}` in `to`.
    `message` has no id of ours yet unless one was sent along in a user property; `id` is the one
    that the remote system has for it, the same when it comes again, or "". Where the face makes up
    an id, `ready` is what has to come true before anybody may see it.
    """

    __slots__ = ("headers", "id", "key", "message", "ready", "rule", "settle")

    def __init__(
        self,
        rule: Rule,
        message: Message,
        settle: Callable[[Failure | None], None],
        *,
        key: str = "",
        id: str = "",
        headers: Mapping[str, str] | None = None,
        ready: Awaitable[None] | None = None,
    ) -> None:
        self.rule = rule
        self.message = message
        self.settle = settle
        self.key = key
        self.id = id
        self.headers: Mapping[str, str] = headers or {}
        self.ready = ready


class Intake(ABC):
    """The way in, as a face sees it."""

    rules: Sequence[Rule]
    """The rules with `direction: in`."""
    window: int
    """How many messages may be taken and not yet settled: for a prefetch, a receive maximum."""

    @abstractmethod
    async def room(self) -> None:
        """Wait until another message may be put."""

    @abstractmethod
    def put(self, incoming: Incoming) -> None:
        """Take a message. Never waits and never raises; its `settle` is called later."""


class Remote(ABC):
    """One connection to a remote system."""

    batch: int = 1
    """Items that one call of `send` takes at most."""
    per_key: int = 0
    """Items of one key that may be unanswered at once; 0: any number.

    1 for systems that may refuse one item and accept the next: anything else would let the
    second overtake.
    """

    @abstractmethod
    async def connect(self) -> None:
        """Be ready to send. Retry or Refused; what was opened until then is closed by `close`."""

    @abstractmethod
    async def consume(self, intake: Intake) -> None:
        """Begin to consume for `intake.rules`, and return. Retry or Refused."""

    @abstractmethod
    async def send(self, items: Sequence[Item], done: Done) -> None:
        """Hand over some items, see above. Raises nothing: failures go to `done`."""

    @abstractmethod
    async def wait(self) -> Failure:
        """Wait for the end of the connection, and say why it ended."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection, if there is one. Raises nothing; may be called twice."""
