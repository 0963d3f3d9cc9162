"""For the tests of plugins: a stand-in for the broker, driven by hand, and a real broker.

`StandIn` is a `BrokerServices` that keeps everything in memory and has a clock of its own: a test
makes the plugin with it, calls hooks as the broker would, moves the clock, and looks at what the
plugin published, kicked, wrote and counted. `StandInClient` is a client inside of it, to which the
test hands messages. Nothing there needs a socket, and nothing sleeps.

`running` is a whole broker with the plugin in it, on a free port of loopback, for what only shows
there: the order of plugins, what other clients see, time limits. How the hooks are called is then
the broker's own code.

Must not know: the core. Nothing here is used by a broker that runs.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

from mqttd.api import (
    ALLOW,
    Allow,
    BrokerServices,
    Client,
    Deny,
    InternalClient,
    Message,
    MessageProperties,
    NoRoom,
    Plugin,
    PluginConfig,
    ProtocolError,
    Received,
    Responder,
    SessionInfo,
    ShareInfo,
    SharePolicy,
    Table,
    Timer,
    matches,
    reason_codes,
    validate_topic_filter,
    validate_topic_name,
)
from mqttd.app import App
from mqttd.config import parse_config

__all__ = ["Running", "StandIn", "StandInClient", "running", "settled"]

ResultT = TypeVar("ResultT")
PluginT = TypeVar("PluginT", bound=Plugin[Any])


async def settled(answer: Any) -> Any:
    """What a hook answered, at once or by a coroutine."""
    return await answer if isinstance(answer, Awaitable) else answer


class _Call(Timer):
    def __init__(self, at: float, order: int, action: Callable[[], object]) -> None:
        self.at = at
        self.order = order
        self.action: Callable[[], object] | None = action

    def __lt__(self, other: _Call) -> bool:
        return (self.at, self.order) < (other.at, other.order)

    def cancel(self) -> None:
        self.action = None


class _Work(Timer):
    def __init__(self, task: asyncio.Future[object]) -> None:
        self.task = task

    def cancel(self) -> None:
        self.task.cancel()


class _Rows(Table):
    def __init__(self, stand_in: StandIn) -> None:
        self.rows: dict[str, bytes] = {}
        self._stand_in = stand_in

    def get(self, key: str) -> bytes | None:
        return self.rows.get(key)

    def items(self) -> list[tuple[str, bytes]]:
        return list(self.rows.items())

    def set(self, key: str, value: bytes) -> Awaitable[None]:
        if not isinstance(key, str) or not isinstance(value, bytes):  # as in the broker
            raise TypeError(f"a row of {type(key).__name__} and {type(value).__name__}")
        if self._stand_in.full:
            raise NoRoom(errno.ENOSPC, "the disk is full: nothing more is stored")
        self.rows[key] = value
        return _done()

    def delete(self, key: str) -> Awaitable[None]:
        self.rows.pop(key, None)
        return _done()


class _Nothing:
    """Awaitable at once, and no coroutine that would have to be awaited."""

    def __await__(self) -> Any:
        return iter(())


def _done() -> Awaitable[None]:
    return _Nothing()


class StandInClient(InternalClient):
    """A client inside a `StandIn`. `arrive` is the broker's part; the rest is the plugin's."""

    def __init__(self, broker: StandIn, client_id: str, receive_maximum: int, lasts: bool) -> None:
        self.client_id = client_id
        self.receive_maximum = receive_maximum
        self.lasts = lasts  # the session outlives the client
        self.filters: dict[str, int] = {}  # to the QoS that was granted
        self.settled: list[tuple[Message, int]] = []  # what was acknowledged, and how
        self.open = True
        self._broker = broker
        self._waiting: deque[Message] = deque()
        self._unsettled: dict[int, Message] = {}  # by number
        self._last = 0
        self._mailbox: asyncio.Queue[Received | None] = asyncio.Queue()

    def arrive(self, message: Message) -> None:
        """A message matched. Above QoS 0 it is in flight until acknowledged, or queued."""
        if message.qos == 0:
            if self.open:
                self._mailbox.put_nowait(Received(message, False, lambda reason: None))
            return
        self._waiting.append(message)
        self._pump()

    def _pump(self) -> None:
        while self.open and self._waiting and len(self._unsettled) < self.receive_maximum:
            message = self._waiting.popleft()
            self._last += 1
            self._unsettled[self._last] = message
            self._hand_over(self._last, message, False)

    def _hand_over(self, number: int, message: Message, duplicate: bool) -> None:
        def acknowledge(reason: int) -> None:
            if self._mailbox is mailbox and self._unsettled.pop(number, None) is not None:
                self.settled.append((message, reason))
                self._pump()

        mailbox = self._mailbox
        mailbox.put_nowait(Received(message, duplicate, acknowledge, number if self.lasts else 0))

    def resume(self) -> None:
        """The session is taken up again: what wasn't acknowledged comes first, as duplicates."""
        self.open = True
        self._mailbox = asyncio.Queue()
        for number, message in self._unsettled.items():
            self._hand_over(number, message, True)
        self._pump()

    async def subscribe(
        self,
        topic_filter: str,
        qos: int = 1,
        *,
        no_local: bool = True,
        retain_as_published: bool = True,
        retain_handling: int = 1,
    ) -> None:
        try:
            validate_topic_filter(topic_filter)
        except ProtocolError as error:
            raise ValueError(f"can't subscribe to {topic_filter!r}: {error}") from error
        self.filters[topic_filter] = min(qos, 1)

    async def unsubscribe(self, topic_filter: str) -> None:
        self.filters.pop(topic_filter, None)

    @property
    def subscriptions(self) -> list[str]:
        return list(self.filters)

    async def __aiter__(self) -> AsyncIterator[Received]:
        while (received := await self._mailbox.get()) is not None:
            yield received

    async def take(self) -> list[Received]:
        found = [await self._mailbox.get()]
        while not self._mailbox.empty():
            found.append(self._mailbox.get_nowait())
        if found[-1] is None:
            self._mailbox.put_nowait(None)  # for the next call
        return [received for received in found if received is not None]

    async def publish(self, message: Message) -> int:
        return await self._broker.publish(message)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._unsettled)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._mailbox.put_nowait(None)
            if not self.lasts:
                del self._broker.clients[self.client_id]


class StandIn(BrokerServices):
    """The services of a broker, without one. `advance` moves the clock; the rest is for asserts."""

    def __init__(self, name: str = "plugin") -> None:
        self.name = name
        self.log = logging.getLogger(f"mqttd.plugins.{name}")
        self.clock = 1000.0
        self.published: list[Message] = []
        self.kicked: list[tuple[str, str, int]] = []
        self.forgotten: list[str | None] = []  # client ids; None for all of them
        self.known: dict[str, SessionInfo] = {}
        self.retains: dict[str, Message] = {}
        self.answer: Allow | Deny = ALLOW  # of `may_publish`
        self.asked: list[tuple[Client, str, int, bool]] = []
        self.counts: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.tables: dict[str, _Rows] = {}
        self.full = False  # the disk is: tables take no row
        self.clients: dict[str, StandInClient] = {}
        self.works: list[_Work] = []
        self.replies: dict[str, bytes] = {}  # topic of a request → payload of its answer
        self.responders: dict[str, Responder] = {}
        self.shares: dict[str, ShareInfo] = {}
        self.policies: dict[str, SharePolicy | None] = {}
        self._calls: list[_Call] = []
        self._order = 0

    async def start(self, plugin: type[Plugin[Any]], config: PluginConfig) -> Plugin[Any]:
        """An instance of `plugin` that was made and started with this stand-in."""
        made = plugin(config, self)
        await made.start()
        return made

    async def advance(self, by_s: float) -> None:
        """Move the clock, and do on the way what is due."""
        until = self.clock + by_s
        while self._calls and self._calls[0].at <= until:
            call = heapq.heappop(self._calls)
            self.clock = max(self.clock, call.at)
            if call.action is not None:
                await settled(call.action())
        self.clock = until

    def now(self) -> float:
        return self.clock

    async def publish(self, message: Message) -> int:
        try:
            validate_topic_name(message.topic)
        except ProtocolError as error:
            raise ValueError(f"not a message: {error}") from error
        self.published.append(message)
        if message.retain and message.payload:
            self.retains[message.topic] = message
        elif message.retain:
            self.retains.pop(message.topic, None)
        return 1

    async def client(
        self, client_id: str, *, receive_maximum: int = 256, session_expiry_s: int = 0xFFFFFFFF
    ) -> InternalClient:
        client = self.clients.get(client_id)
        if client is not None and client.open:
            raise ValueError(f"no client {client_id!r}: the client id is in use")
        if client is not None and session_expiry_s:
            client.resume()
            return client
        client = StandInClient(self, client_id, receive_maximum, session_expiry_s > 0)
        self.clients[client_id] = client
        return client

    async def request(
        self,
        topic: str,
        payload: bytes = b"",
        *,
        timeout_s: float = 5.0,
        qos: int = 1,
        properties: MessageProperties | None = None,
    ) -> Message:
        await self.publish(Message(topic, payload, qos, properties=properties))
        if topic not in self.replies:
            raise TimeoutError(f"no answer on {topic}")
        return Message("$reply/stand-in", self.replies[topic], qos)

    async def respond(
        self, topic_filter: str, handler: Responder, *, reply_to: Sequence[str] = ()
    ) -> Timer:
        self.responders[topic_filter] = handler
        return _Call(0.0, 0, lambda: None)

    def govern(self, topic_filter: str, policy: SharePolicy | None) -> None:
        self.policies[topic_filter] = policy

    def share(self, topic_filter: str) -> ShareInfo | None:
        return self.shares.get(topic_filter)

    async def retained(self, topic_filter: str) -> AsyncIterator[Message]:
        for topic, message in list(self.retains.items()):
            if matches(topic_filter, topic):
                yield message

    def session(self, client_id: str) -> SessionInfo | None:
        return self.known.get(client_id)

    async def sessions(self) -> AsyncIterator[SessionInfo]:
        for session in list(self.known.values()):
            yield session

    def kick(
        self, client_id: str, reason: str = "", code: int = reason_codes.ADMINISTRATIVE_ACTION
    ) -> bool:
        self.kicked.append((client_id, reason, code))
        return client_id in self.known

    def forget_decisions(self, client_id: str | None = None) -> None:
        self.forgotten.append(client_id)

    async def may_publish(
        self, client: Client, topic: str, qos: int = 0, retain: bool = False
    ) -> Allow | Deny:
        self.asked.append((client, topic, qos, retain))
        return self.answer

    def call_later(self, delay_s: float, action: Callable[[], object]) -> Timer:
        self._order += 1
        call = _Call(self.clock + delay_s, self._order, action)
        heapq.heappush(self._calls, call)
        return call

    def spawn(self, work: Awaitable[object], name: str = "") -> Timer:
        timer = _Work(asyncio.ensure_future(work))
        self.works.append(timer)
        return timer

    async def run_blocking(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return await asyncio.to_thread(function, *arguments)

    def table(self, name: str = "") -> Table:
        return self.tables.setdefault(name, _Rows(self))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def audit(self, kind: str, **fields: object) -> None:
        self.audited.append((kind, fields))


class Running(Generic[PluginT]):
    """A broker that runs, and the plugin in it."""

    def __init__(self, port: int, plugin: PluginT) -> None:
        self.port = port  # of its first listener, on 127.0.0.1
        self.plugin = plugin  # the instance that the broker has made and started


@asynccontextmanager
async def running(
    made_by: type[PluginT],
    config: Mapping[str, object] | None = None,
    *,
    entry: Mapping[str, object] | None = None,
    broker: Mapping[str, object] | None = None,
) -> AsyncIterator[Running[PluginT]]:
    """A broker with a plugin, started and stopped around the block; nothing of it is kept.

    `made_by` is a class of a module, at its top. `config` is its configuration as it would stand in
    the file, `entry` what stands beside it (timeout, on_failure, …), `broker` the rest of the
    broker's configuration; the plugin comes behind those in there. Without listeners there is one,
    on a free port. ConfigError and PluginError as from the broker itself.
    """
    if made_by.__qualname__ != made_by.__name__:
        raise ValueError(f"{made_by.__qualname__} has to stand at the top of its module")
    tree: dict[str, Any] = {
        "listeners": [{"name": "tcp", "bind": "127.0.0.1:0"}],
        "storage": {"path": ":memory:"},
        **(broker or {}),
    }
    use = f"{made_by.__module__}:{made_by.__name__}"
    own = {"use": use, "name": "tested", "config": dict(config or {}), **(entry or {})}
    tree["plugins"] = [*tree.get("plugins", []), own]
    app = App(parse_config(tree))
    await app.start()
    try:
        assert app.hooks is not None
        plugin = cast(PluginT, app.hooks.plugin(str(own["name"])))
        yield Running(app.listeners[0].port, plugin)
    finally:
        await app.stop(0.05)
