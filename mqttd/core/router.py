"""What a connection may ask of the broker.

Owns: `Router`, the interface between one connection and everything it shares with the others, and
the small value objects that cross it. `Broker` (a layer up) implements it; the machine of a
connection can so be read, and tested, without the registry behind it.

Must not know: who implements it, transports, time.

Invariant: every method returns at once; what has to be durable first comes back as a barrier, the
number of the journal batch to wait for (0: none).
"""

from collections.abc import Callable
from typing import Final

from mqttd.core import watch
from mqttd.core.counters import Counters
from mqttd.core.decode import PublishFields
from mqttd.core.journal import Journal
from mqttd.core.message import Message
from mqttd.core.outbound import Outbound
from mqttd.core.packets import Connect, Filter
from mqttd.core.retained import Retained
from mqttd.core.session import Context, Session
from mqttd.core.settings import Settings
from mqttd.core.tables import Tables
from mqttd.core.trie import Matched, Trie

MAX_EVENTS: Final = 10000
_WATCHED: Final[dict[str, int]] = {
    "connect": watch.CONNECTED,
    "disconnect": watch.DISCONNECTED,
    "refused": watch.REFUSED,
    "session_expired": watch.EXPIRED,
}


class ListenerInfo:
    """What the core needs to know of the listener a connection came through."""

    def __init__(self, name: str, transport: str, allow_anonymous: bool) -> None:
        self.name = name
        self.transport = transport  # tcp, tls, websocket, unix …
        self.allow_anonymous = allow_anonymous


class Event:
    """One line for the log. Never holds a payload or a password."""

    def __init__(
        self, kind: str, client_id: str, peer: str, reason: str, username: str | None = None
    ) -> None:
        self.kind = kind
        self.client_id = client_id
        self.peer = peer
        self.reason = reason
        self.username = username


class Router:
    """Shared state and the methods a connection calls."""

    def __init__(self, settings: Settings, durable: bool) -> None:
        self.settings = settings
        self.counters = Counters()
        self.journal = Journal(durable)
        self.context = Context(settings, self.counters, self.journal)
        self.trie = Trie(settings.max_topic_levels)
        self.retained = Retained()
        self.tables = Tables(self.journal)
        self.hooks = self.context.hooks
        self.fields = PublishFields()  # of the PUBLISH that is being read
        self.dirty: list[Outbound] = []
        self.events: list[Event] = []
        self.new_client_id: Callable[[], str] = self.count_client_id
        self._assigned: int = 0

    def note(
        self, kind: str, client_id: str, peer: str, reason: str, username: str | None = None
    ) -> None:
        """Leave a line for the log; the shell drains `events` every tick."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(Event(kind, client_id, peer, reason, username))
        watched = _WATCHED.get(kind, -1)
        if watched >= 0:
            self.tell(watched, client_id, peer, reason, username)

    def tell(
        self, kind: int, client_id: str, peer: str, reason: str, username: str | None = None
    ) -> None:
        """Tell the record of decisions, and observers, about a client or its session."""
        watcher = self.context.watcher
        if watcher is not None:
            watcher.note(kind, client_id, peer, "", 0, 0, reason, username)

    def count_client_id(self) -> str:
        self._assigned += 1
        return "auto-" + str(self._assigned)

    def admit(
        self, connection: Outbound, connect: Connect, owner: str | None, now: float
    ) -> Session | None:
        """The session for an authenticated CONNECT; None when another user owns it."""
        raise AssertionError("a Router has to override admit")

    def left(self, session: Session, connection: Outbound, with_will: bool, now: float) -> None:
        """A connection gives its session up."""
        raise AssertionError("a Router has to override left")

    def forget(self, connection: Outbound) -> None:
        """The transport of a connection is gone."""
        raise AssertionError("a Router has to override forget")

    def set_expiry(self, session: Session, interval: int) -> None:
        """DISCONNECT changed the Session Expiry Interval."""
        raise AssertionError("a Router has to override set_expiry")

    def forward(
        self, frame: bytes, payload_at: int, matched: Matched, origin: Session, now: float
    ) -> None:
        """Route a QoS 0 PUBLISH that needs no change, given as the frame that arrived."""
        raise AssertionError("a Router has to override forward")

    def route(self, message: Message, matched: Matched, origin: Session | None, now: float) -> int:
        """Deliver to everybody who matches; returns how many did."""
        raise AssertionError("a Router has to override route")

    def bury(self, now: float) -> int:
        """Publish what stands for messages that ended undelivered; returns the barrier."""
        raise AssertionError("a Router has to override bury")

    def storable(self, message: Message, matched: Matched) -> bool:
        """Whether the store would have to keep something of the message."""
        raise AssertionError("a Router has to override storable")

    def publish(self, message: Message, now: float, origin: Session | None = None) -> int:
        """Publish on behalf of the broker, or of a session (a will); returns who matched."""
        raise AssertionError("a Router has to override publish")

    def retain(self, message: Message) -> int:
        """Store or clear the retained message of a topic; returns the barrier."""
        raise AssertionError("a Router has to override retain")

    def subscribe(self, session: Session, entry: Filter, identifier: int) -> int:
        """Add or replace a subscription; returns the SUBACK reason code."""
        raise AssertionError("a Router has to override subscribe")

    def unsubscribe(self, session: Session, topic_filter: str) -> int:
        """Remove a subscription; returns the UNSUBACK reason code."""
        raise AssertionError("a Router has to override unsubscribe")
