"""What passes between the broker and a plugin: clients, messages, decisions, events.

Owns: the value types of `mqttd.api`. They are made for authors of plugins: plain text and numbers
instead of encoded blocks, nothing that a plugin could break by keeping it.

Must not know: how a hook is called, connections, the store, asyncio.

Invariants: a `Message` is never changed, `replace` makes another one; its properties are decoded
when somebody asks for them, since most hooks look at the topic alone; a decision that is not one of
the classes here is no decision, and counts as a failure of the plugin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mqttd.core import spec
from mqttd.core.properties import Properties, decode_forwardable, encode_forwardable


class Client:
    """Somebody who is connected, or about to be: whom a hook is asked about.

    One object lasts from CONNECT to the end of the connection, and beyond it for the will and the
    queue of its session; who authenticates again becomes another. `attributes` is for plugins: what
    one of them learnt about the client (claims of a token, a tenant), the others may read.
    """

    __slots__ = (
        "_certificate",
        "address",
        "attributes",
        "client_id",
        "identity",
        "listener",
        "peer",
        "transport",
        "username",
        "version",
    )

    def __init__(
        self,
        client_id: str,
        username: str | None = None,
        peer: str = "",
        listener: str = "",
        transport: str = "tcp",
        version: int = spec.MQTT5,
        identity: str | None = None,
        certificate: Any = None,
    ) -> None:
        self.client_id = client_id  # the broker's choice where the client brought none
        self.username = username  # as claimed while `authenticate` is asked, verified afterwards
        self.peer = peer  # "192.0.2.1:50123", "[2001:db8::1]:50123" or "unix:/run/mqttd.sock"
        self.address = address_of(peer)  # the same without the port
        self.listener = listener  # name in the configuration
        self.transport = transport  # tcp, websocket or unix, with "+tls" behind it
        self.version = version  # protocol level: 3, 4 or 5
        self.identity = identity  # user name out of a verified client certificate
        self.attributes: dict[str, Any] = {}
        self._certificate = certificate

    def renewed(self) -> Client:
        """The same client once more, with attributes of its own: while it authenticates again,
        who was asked about it before sees no change."""
        copy = Client(
            self.client_id,
            self.username,
            self.peer,
            self.listener,
            self.transport,
            self.version,
            self.identity,
            self._certificate,
        )
        copy.attributes.update(self.attributes)
        return copy

    @property
    def certificate(self) -> bytes | None:
        """The verified certificate of the client as DER; None where it showed none."""
        certificate = self._certificate
        if certificate is None or isinstance(certificate, bytes):
            return certificate
        self._certificate = found = certificate()
        return found if isinstance(found, bytes) else None

    def __repr__(self) -> str:
        return f"Client({self.client_id!r}, username={self.username!r}, peer={self.peer!r})"


def address_of(peer: str) -> str:
    """The host of a peer; a Unix socket stands for itself."""
    if peer.startswith("unix:"):
        return peer
    host, colon, _ = peer.rpartition(":")
    return host.strip("[]") if colon else peer


@dataclass(frozen=True, slots=True)
class MessageProperties:
    """The properties of a PUBLISH that travel with the message."""

    payload_format_indicator: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()

    def encoded(self) -> bytes:
        """As they stand in a PUBLISH, without the length in front. ProtocolError if invalid."""
        block = Properties()
        block.payload_format_indicator = self.payload_format_indicator
        block.content_type = self.content_type
        block.response_topic = self.response_topic
        block.correlation_data = self.correlation_data
        block.user_properties = list(self.user_properties)
        return encode_forwardable(block)


NO_PROPERTIES: Final = MessageProperties()


class Message:
    """An application message. `expires_in_s` is what is left of its expiry interval."""

    __slots__ = (
        "_block",
        "_properties",
        "client_id",
        "expires_in_s",
        "payload",
        "qos",
        "retain",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        properties: MessageProperties | None = None,
        expires_in_s: float | None = None,
        client_id: str = "",
        block: bytes | None = None,
    ) -> None:
        """`block` is the encoded form of `properties`, for whoever has that at hand."""
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.expires_in_s = expires_in_s
        self.client_id = client_id  # of the publisher; "" for the broker and its plugins
        self._properties = properties
        self._block = block

    @property
    def properties(self) -> MessageProperties:
        if self._properties is None:
            self._properties = _decoded(self._block) if self._block else NO_PROPERTIES
        return self._properties

    @property
    def block(self) -> bytes:
        """The encoded properties."""
        if self._block is None:
            self._block = b"" if self._properties is None else self._properties.encoded()
        return self._block

    def replace(self, **changes: Any) -> Message:
        """The same message with other topic, payload, qos, retain, properties or expires_in_s."""
        values: dict[str, Any] = {
            "topic": self.topic,
            "payload": self.payload,
            "qos": self.qos,
            "retain": self.retain,
            "expires_in_s": self.expires_in_s,
            "client_id": self.client_id,
        }
        if "properties" not in changes:
            values["properties"] = self._properties
            values["block"] = self._block
        values.update(changes)
        return Message(**values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        names = ("topic", "payload", "qos", "retain", "expires_in_s", "client_id", "properties")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def __hash__(self) -> int:
        return hash((self.topic, self.payload, self.qos))

    def __repr__(self) -> str:
        # Never the payload: what is printed may end in a log.
        size = len(self.payload)
        return f"Message({self.topic!r}, {size} bytes, qos={self.qos}, retain={self.retain})"


def _decoded(block: bytes) -> MessageProperties:
    properties = decode_forwardable(block)
    return MessageProperties(
        properties.payload_format_indicator,
        properties.content_type,
        properties.response_topic,
        properties.correlation_data,
        tuple(properties.user_properties or ()),
    )


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a CONNECT brought along. Its `repr` never shows the password."""

    username: str | None
    password: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """The CONNECT that a client sent, for `on_connect`; `dataclasses.replace` makes another one.

    `will` is the message that is published when the connection breaks; its delay can't be changed.
    """

    client_id: str
    clean_start: bool
    keep_alive_s: int
    username: str | None
    session_expiry_s: int
    user_properties: tuple[tuple[str, str], ...] = ()
    will: Message | None = None


@dataclass(frozen=True, slots=True)
class SubscriptionRequest:
    """One filter of a SUBSCRIBE. `topic_filter` is whole: `$share/GROUP/` stands in front of it."""

    topic_filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0

    @property
    def inner_filter(self) -> str:
        """The filter that topics are compared with, without `$share/GROUP/`."""
        if self.topic_filter.startswith("$share/"):
            return self.topic_filter.split("/", 2)[2]
        return self.topic_filter


# Decisions.


@dataclass(frozen=True, slots=True)
class Allow:
    """Yes.

    `rule` says by which rule, for `mqttd explain` (a file and line). From `authenticate`:
    `username` is who the client is from now on (None: whom it claimed to be), `expires_in_s` ends
    the connection after so many seconds, `data` travels in the last step of an enhanced
    authentication. From `authorize_*`: without `cache` the same topic is asked about again.
    """

    rule: str = ""
    username: str | None = None
    expires_in_s: float | None = None
    data: bytes | None = None
    cache: bool = True


@dataclass(frozen=True, slots=True)
class Deny:
    """No. `code` is the MQTT 5 reason code; `reason` goes to the log and, if asked, the client,
    `rule` to the log alone.

    With `disconnect` the connection ends, with `code` in its DISCONNECT.
    """

    reason: str = ""
    code: int = spec.NOT_AUTHORIZED
    rule: str = ""
    disconnect: bool = False
    cache: bool = True


@dataclass(frozen=True, slots=True)
class NotMine:
    """No opinion: the next plugin is asked. When nobody has one, the answer is no."""


@dataclass(frozen=True, slots=True)
class Continue:
    """Enhanced authentication goes on: `data` for the client, then its next AUTH is awaited."""

    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """From `on_publish` and `on_deliver`: acknowledged as usual, and delivered to nobody.

    What the plugin has written to its table before it returned this is durable before the
    acknowledgement leaves.
    """

    reason: str = "dropped by a plugin"


ALLOW: Final = Allow()
DENY: Final = Deny()
NOT_MINE: Final = NotMine()

Decision = Allow | Deny | NotMine


# Events.

CONNECTED: Final = "connected"
DISCONNECTED: Final = "disconnected"
REFUSED: Final = "refused"  # a CONNECT, or a connection before it
SUBSCRIBED: Final = "subscribed"
UNSUBSCRIBED: Final = "unsubscribed"
PUBLISHED: Final = "published"
DENIED: Final = "denied"  # a PUBLISH or a SUBSCRIBE
DELIVERED: Final = "delivered"
DROPPED: Final = "dropped"
SESSION_CREATED: Final = "session_created"
SESSION_EXPIRED: Final = "session_expired"
SESSION_TAKEN_OVER: Final = "session_taken_over"

EVENT_KINDS: Final = frozenset(
    {
        CONNECTED,
        DISCONNECTED,
        REFUSED,
        SUBSCRIBED,
        UNSUBSCRIBED,
        PUBLISHED,
        DENIED,
        DELIVERED,
        DROPPED,
        SESSION_CREATED,
        SESSION_EXPIRED,
        SESSION_TAKEN_OVER,
    }
)


UNDELIVERED: Final = frozenset(
    {
        "expired",
        "not_authorized",
        "packet_too_large",
        "queue_full",
        "redelivery_limit",
        "refused_by_receiver",
        "session_ended",
    }
)
"""The reasons for which `on_undelivered` may be asked."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A message that ended undelivered for one receiver. `reason` is one of `UNDELIVERED`.

    `client_id` is the client that didn't get it, "" where none had been chosen; `share` is the
    shared subscription that it came through, "" for none.
    """

    message: Message
    reason: str
    client_id: str
    share: str


@dataclass(frozen=True, slots=True)
class SharePolicy:
    """How a shared subscription keeps and hands out messages; the defaults are those of all."""

    max_length: int = 0
    """Messages that wait; 0: as `limits.max_queued_messages` says."""
    drop_oldest: bool = False
    """What goes when it is full: the oldest message, or the one that has just come."""
    ttl_s: float = 0.0
    """No message waits longer; 0: as long as its publisher says."""
    redelivery_limit: int = 0
    """So often a message is handed out again, then it is undelivered; 0: no limit."""
    exclusive: bool = False
    """One member gets everything, until it leaves."""
    one_at_a_time: bool = False
    """The next message leaves when the one before is acknowledged."""
    last_value: bool = False
    """Of each topic only the newest message waits."""
    keep_qos0: bool = False
    """QoS 0 waits as well, and is handed out at QoS 0."""


@dataclass(frozen=True, slots=True)
class ShareInfo:
    """A shared subscription as it is now: messages that wait, members, those connected."""

    queued: int
    members: int
    connected: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened. What doesn't apply to its kind is empty.

    `at` is seconds since 1970; `client_id` is whose connection, session, message (published) or
    delivery (delivered, dropped) it is; `topic` is the topic, or the filter of a subscription;
    `payload` is there for `published` alone.
    """

    kind: str
    at: float
    client_id: str = ""
    username: str | None = None
    peer: str = ""
    topic: str = ""
    qos: int = 0
    retain: bool = False
    payload: bytes = field(default=b"", repr=False)
    reason: str = ""


class Figure(NamedTuple):
    """One figure of a plugin as it is now: `mqttd_plugin_NAME{plugin, …}` at /metrics.

    A name that ends with `_total` is a counter, any other a gauge. All figures of a name have the
    same labels, whose values come from closed sets, never from the network.
    """

    name: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
