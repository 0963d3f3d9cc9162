"""The base class of plugins, and what the broker does for them.

Owns: `Plugin`, with every hook as a method; `PluginConfig`, the base of their configurations;
`BrokerServices` and what it hands out (`InternalClient`, `Received`, `Table`, `Timer`): all that a
plugin may ask of the broker.

A plugin overrides the hooks it wants: what isn't overridden is never called, and costs nothing.
Where the signature says that a hook may wait, it may be a coroutine function. All hooks run on
the broker's event loop; what takes long belongs into `BrokerServices.run_blocking`.

Must not know: how hooks are called (`mqttd.hooks.manager`), who implements the services.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from mqttd.core import spec
from mqttd.hooks.values import (
    NOT_MINE,
    Allow,
    Client,
    ConnectRequest,
    Continue,
    Credentials,
    Decision,
    Deny,
    Drop,
    Event,
    Figure,
    Message,
    MessageProperties,
    ShareInfo,
    SharePolicy,
    SubscriptionRequest,
    Undelivered,
)
from mqttd.scalars import Node


class PluginConfig(Node):
    """Base of a plugin's configuration: a pydantic model, strict, that refuses unknown keys."""


ConfigT = TypeVar("ConfigT", bound=PluginConfig)
ResultT = TypeVar("ResultT")


class Plugin(Generic[ConfigT]):
    """A plugin. `class Mine(Plugin[MyConfig])`, where MyConfig derives from `PluginConfig`."""

    config_class: ClassVar[type[PluginConfig]] = PluginConfig
    """Filled in from the type parameter."""
    watches: frozenset[str] = frozenset()
    """The kinds of events that `observe` wants; may be set on the class or by `__init__`."""
    undelivered: frozenset[str] = frozenset()
    """The reasons for which `on_undelivered` is asked; may be set by `__init__` as well."""
    unused: frozenset[str] = frozenset()
    """Hooks that the plugin has and doesn't need as it is configured: they aren't asked, and cost
    nothing. For `__init__` to set."""
    role: ClassVar[str] = ""
    """What the operator's lists have it as: `bridge` for `mqttd bridges`. Such a plugin answers
    `control` for the actions that this list knows: `status`, `pause` and `resume`."""
    auth_methods: tuple[str, ...] = ()
    """The authentication methods of MQTT 5 that `authenticate_enhanced` serves."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            if isinstance(get_origin(base), type) and issubclass(get_origin(base), Plugin):
                (argument,) = get_args(base)
                if isinstance(argument, type) and issubclass(argument, PluginConfig):
                    cls.config_class = argument

    def __init__(self, config: ConfigT, broker: BrokerServices) -> None:
        """Nothing may block here, and the broker isn't there yet: see `start`."""
        self.config = config
        self.broker = broker

    async def start(self) -> None:
        """Before the first client may connect. An exception here stops the start of the broker."""

    async def stop(self) -> None:
        """After the last client has gone. Called only if `start` succeeded."""

    async def check(self) -> None:
        """Say by an exception that the files or the service in the configuration are no good.

        Called on an instance that is never started: by `mqttd check`, and before a reload, for the
        new configuration.
        """

    async def reload(self, config: ConfigT) -> None:
        """Take a new configuration, or read the files of the same one again.

        An exception leaves the broker with what it had: build the new state, then put it in place.
        """
        self.config = config

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        """Answer the operator, who asks over the control socket (`mqttd plugin NAME ACTION`).

        `arguments` and the answer are what JSON can hold. ValueError: the text is shown.
        """
        raise ValueError(f"{self.broker.name} has no action {action!r}")

    def figures(self) -> Iterable[Figure]:
        """What /metrics shows of it, beside what it has told `count` and `gauge`.

        Asked each time that somebody reads the page, so that figures which belong together are
        of one instant. May not wait.
        """
        return ()

    # Deciders.

    def authenticate(
        self, client: Client, credentials: Credentials
    ) -> Decision | Awaitable[Decision]:
        """Whether the client may connect. May wait."""
        return NOT_MINE

    def authenticate_enhanced(
        self, client: Client, method: str, data: bytes | None, first: bool
    ) -> Continue | Allow | Deny | Awaitable[Continue | Allow | Deny]:
        """One step of an enhanced authentication. May wait.

        `first` is True for the data of CONNECT, and of an AUTH that asks to re-authenticate.
        """
        return Deny("no enhanced authentication", spec.BAD_AUTHENTICATION_METHOD)

    def authorize_publish(
        self, client: Client, topic: str, qos: int, retain: bool
    ) -> Decision | Awaitable[Decision]:
        """Whether the client may publish to the topic, also as its will. May wait."""
        return NOT_MINE

    def authorize_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> Decision | Awaitable[Decision]:
        """Whether the client may have the subscription, new or resumed. May wait."""
        return NOT_MINE

    def authorize_receive(self, client: Client, topic: str) -> Decision:
        """Whether the client may get a message of the topic. May not wait."""
        return NOT_MINE

    # Transformers.

    def on_connect(
        self, client: Client, request: ConnectRequest
    ) -> ConnectRequest | Deny | Awaitable[ConnectRequest | Deny | None] | None:
        """Look at a CONNECT before anybody authenticates it; None leaves it as it is. May wait."""
        return None

    def on_subscribe(
        self, client: Client, subscription: SubscriptionRequest
    ) -> SubscriptionRequest | Deny | Awaitable[SubscriptionRequest | Deny | None] | None:
        """Change or deny a subscription before it is authorised. May wait."""
        return None

    def on_unsubscribe(self, client: Client, topic_filter: str) -> str | None:
        """The filter that is meant, where `on_subscribe` changes filters. May not wait."""
        return None

    def on_publish(
        self, client: Client, message: Message
    ) -> Message | Deny | Drop | Awaitable[Message | Deny | Drop | None] | None:
        """Change, deny or drop a message that was authorised; None leaves it as it is. May wait.

        While it is awaited the client's later packets wait, so that the order is kept; others go
        on. A topic that was changed is authorised again.
        """
        return None

    def on_deliver(self, client: Client, message: Message) -> Message | Drop | None:
        """Change or drop a message for one receiver, as often as it is sent. May not wait.

        The QoS is that of the delivery, and stays.
        """
        return None

    def on_undelivered(self, undelivered: Undelivered) -> Message | None:
        """The dead letter to publish instead of a message that ended undelivered; None for none.

        It gets user properties that say so, and the broker asks for no letter of a letter. What
        is durable of the message until now is not gone before the letter is as durable. The first
        plugin with a letter counts. May not wait.
        """
        return None

    # Observers.

    def observe(self, events: Sequence[Event]) -> Awaitable[None] | None:
        """What has happened, of the kinds in `watches`, in order, some at a time. May wait.

        While it is awaited events are gathered, up to a bound; above it they are counted as lost.
        """
        return None


class NoRoom(OSError):
    """The disk is full, so nothing more is stored until there is room. Nothing was changed."""


class Timer(ABC):
    """Something that happens later."""

    @abstractmethod
    def cancel(self) -> None:
        """Not any more. Harmless when it has happened."""


class Table(ABC):
    """Rows of a plugin, key to value, in the broker's own store. All of them are in memory."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """The value of a key; None where there is none."""

    @abstractmethod
    def items(self) -> list[tuple[str, bytes]]:
        """All rows, in no order."""

    @abstractmethod
    def set(self, key: str, value: bytes) -> Awaitable[None]:
        """Set a row, at once; what comes back can be awaited: then it is durable.

        `NoRoom` while the disk is full, and then nothing has changed.
        """

    @abstractmethod
    def delete(self, key: str) -> Awaitable[None]:
        """Delete a row, as `set`. No error where there is none, nor while the disk is full: it is
        durable as soon as there is room."""


class Received:
    """A message that an internal client got. Acknowledge it, or it stays in flight.

    `number` is the same whenever the client gets this message, after a restart as well, and is
    never that of another. It is 0 where there is no such number: at QoS 0, for a client or a broker
    that keeps nothing, and for what came by a shared subscription. `redeliveries` counts how many
    members of such a one had the message before and left it unfinished.
    """

    __slots__ = ("_acknowledge", "duplicate", "message", "number", "redeliveries")

    def __init__(
        self,
        message: Message,
        duplicate: bool,
        acknowledge: Callable[[int], None],
        number: int = 0,
        redeliveries: int = 0,
    ) -> None:
        self.message = message
        self.duplicate = duplicate  # it was sent before, perhaps to an earlier process
        self.number = number
        self.redeliveries = redeliveries
        self._acknowledge = acknowledge

    def ack(self, reason: int = spec.SUCCESS) -> None:
        """It is settled and never comes again; with a `reason` of 0x80 or above as refused."""
        self._acknowledge(reason)


class InternalClient(ABC):
    """A client inside the broker: a session like any other, without a connection.

    Nobody asks whether it may publish or subscribe: plugins are trusted.
    """

    client_id: str

    @abstractmethod
    async def subscribe(
        self,
        topic_filter: str,
        qos: int = 1,
        *,
        no_local: bool = True,
        retain_as_published: bool = True,
        retain_handling: int = 1,
    ) -> None:
        """Durable when it returns. ValueError for a filter that is none. QoS 2 arrives as 1."""

    @abstractmethod
    async def unsubscribe(self, topic_filter: str) -> None:
        """Take a subscription back."""

    @property
    @abstractmethod
    def subscriptions(self) -> list[str]:
        """The filters it is subscribed to, those of an earlier process included."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Received]:
        """What arrives. At most `receive_maximum` of them are unacknowledged at any time."""

    @abstractmethod
    async def take(self) -> list[Received]:
        """All that has arrived, at least one; none once the client is closed.

        The same messages as one by one, with less work for each.
        """

    @abstractmethod
    async def publish(self, message: Message) -> int:
        """As `BrokerServices.publish`, with this client as publisher (No Local applies)."""

    @property
    @abstractmethod
    def queued(self) -> int:
        """Messages that wait in the session, those in flight not included."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Messages that were handed out and not acknowledged."""

    @abstractmethod
    def close(self) -> None:
        """Stop. A session that lasts waits for the next `BrokerServices.client` of that id."""


Responder = Callable[[Message], bytes | Message | Awaitable[bytes | Message | None] | None]


class SessionInfo:
    """A session as it is now."""

    __slots__ = (
        "client_id",
        "connected",
        "expiry_interval_s",
        "in_flight",
        "peer",
        "queued",
        "subscriptions",
        "username",
    )

    def __init__(
        self,
        client_id: str,
        username: str | None,
        connected: bool,
        peer: str,
        subscriptions: tuple[str, ...],
        queued: int,
        in_flight: int,
        expiry_interval_s: int,
    ) -> None:
        self.client_id = client_id
        self.username = username
        self.connected = connected
        self.peer = peer
        self.subscriptions = subscriptions
        self.queued = queued
        self.in_flight = in_flight
        self.expiry_interval_s = expiry_interval_s


class BrokerServices(ABC):
    """What the broker does for one plugin."""

    name: str
    """The plugin's name: `name` in the configuration, or what it is called by `use`."""
    log: logging.Logger

    @abstractmethod
    def now(self) -> float:
        """Monotonic seconds, the broker's clock."""

    @abstractmethod
    async def publish(self, message: Message) -> int:
        """Publish on behalf of the broker; returns how many matched, when it is durable.

        No hook is asked: plugins are trusted. ValueError for a topic that is none.
        """

    @abstractmethod
    async def client(
        self, client_id: str, *, receive_maximum: int = 256, session_expiry_s: int = 0xFFFFFFFF
    ) -> InternalClient:
        """Connect inside. With a `session_expiry_s` above 0 the session outlives the process.

        ValueError where the id belongs to somebody else or is in use.
        """

    @abstractmethod
    async def request(
        self,
        topic: str,
        payload: bytes = b"",
        *,
        timeout_s: float = 5.0,
        qos: int = 1,
        properties: MessageProperties | None = None,
    ) -> Message:
        """Publish a request and wait for its answer; any number of them at once.

        Response topic and correlation data are the broker's, whatever is in `properties`.
        TimeoutError without an answer in time, LookupError where nobody subscribes to `topic`.
        """

    @abstractmethod
    async def respond(
        self,
        topic_filter: str,
        handler: Responder,
        *,
        reply_to: Sequence[str] = ("response/#", "$reply/#"),
    ) -> Timer:
        """Answer the requests that match a filter, until the plugin stops or `cancel`.

        `handler` gets the request and returns the payload of the answer, a message of which
        payload and properties count, or None for no answer. A response topic that matches none of
        `reply_to` gets nothing: who asks may have no right to publish there.
        """

    @abstractmethod
    def govern(self, topic_filter: str, policy: SharePolicy | None) -> None:
        """Give a shared subscription (`$share/NAME/FILTER`) a policy; None takes it back.

        It is in force until the last member has left or the broker ends. ValueError where nobody
        is subscribed.
        """

    @abstractmethod
    def share(self, topic_filter: str) -> ShareInfo | None:
        """A shared subscription as it is now; None where nobody is subscribed."""

    @abstractmethod
    def retained(self, topic_filter: str) -> AsyncIterator[Message]:
        """The retained messages that match, a slice at a time."""

    @abstractmethod
    def session(self, client_id: str) -> SessionInfo | None:
        """One session, connected or not."""

    @abstractmethod
    def sessions(self) -> AsyncIterator[SessionInfo]:
        """All sessions, a slice at a time."""

    @abstractmethod
    def kick(
        self, client_id: str, reason: str = "", code: int = spec.ADMINISTRATIVE_ACTION
    ) -> bool:
        """End a client's connection; False where it has none."""

    @abstractmethod
    def forget_decisions(self, client_id: str | None = None) -> None:
        """What `authorize_*` said is no longer true, for one client or for all.

        Remembered verdicts go; the subscriptions of who is connected are authorised again, and
        what is denied now is taken away. Who is not connected is seen to when it comes back.
        """

    @abstractmethod
    async def may_publish(
        self, client: Client, topic: str, qos: int = 0, retain: bool = False
    ) -> Allow | Deny:
        """Ask the deciders, for a topic that isn't that of the message at hand."""

    @abstractmethod
    def call_later(self, delay_s: float, action: Callable[[], object]) -> Timer:
        """Call `action` after `delay_s`; if it returns something awaitable, that is awaited."""

    @abstractmethod
    def spawn(self, work: Awaitable[object], name: str = "") -> Timer:
        """Run a coroutine beside the rest, until it ends or the plugin stops. `cancel` ends it."""

    @abstractmethod
    async def run_blocking(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Run `function` in a thread; of each plugin two at a time, the rest wait in line."""

    @abstractmethod
    def table(self, name: str = "") -> Table:
        """A table of this plugin, which no other plugin sees. Complete from `start` on."""

    @abstractmethod
    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter, `mqttd_plugin_NAME_total{plugin}` at /metrics."""

    @abstractmethod
    def gauge(self, name: str, value: float) -> None:
        """Set a gauge, `mqttd_plugin_NAME{plugin}` at /metrics."""

    @abstractmethod
    def audit(self, kind: str, **fields: object) -> None:
        """A line in the log that says who changed what. Never a secret, never a payload."""


__all__ = [
    "BrokerServices",
    "ConfigT",
    "InternalClient",
    "NoRoom",
    "Plugin",
    "PluginConfig",
    "Received",
    "Responder",
    "ResultT",
    "SessionInfo",
    "Table",
    "Timer",
]
