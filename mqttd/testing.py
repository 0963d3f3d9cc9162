"""For the tests of plugins: a stand-in for the broker, driven by hand.

`StandIn` is a `BrokerServices` that keeps everything in memory and has a clock of its own: a test
makes the plugin with it, calls hooks as the broker would, moves the clock, and looks at what the
plugin published, kicked, wrote and counted. A test of the plugin inside a real broker is
`mqttd.Broker` with the plugin in its configuration.

Must not know: sockets, the core. Nothing here is used by a broker that runs.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from mqttd.api import (
    ALLOW,
    Allow,
    BrokerServices,
    Client,
    Deny,
    InternalClient,
    Message,
    Plugin,
    PluginConfig,
    SessionInfo,
    Table,
    Timer,
    matches,
    reason_codes,
    validate_topic_name,
)

__all__ = ["StandIn", "settled"]

ResultT = TypeVar("ResultT")


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
    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.rows.get(key)

    def items(self) -> list[tuple[str, bytes]]:
        return list(self.rows.items())

    def set(self, key: str, value: bytes) -> Awaitable[None]:
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


class StandIn(BrokerServices):
    """The services of a broker, without one. `advance` moves the clock; the rest is for asserts."""

    def __init__(self, name: str = "plugin") -> None:
        self.name = name
        self.log = logging.getLogger(f"mqttd.plugin.{name}")
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
        self.works: list[_Work] = []
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
        validate_topic_name(message.topic)
        self.published.append(message)
        if message.retain:
            self.retains[message.topic] = message
        return 1

    async def client(
        self, client_id: str, *, receive_maximum: int = 256, session_expiry_s: int = 0xFFFFFFFF
    ) -> InternalClient:
        raise RuntimeError("an internal client needs a real broker: see mqttd.Broker")

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
        return self.tables.setdefault(name, _Rows())

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def audit(self, kind: str, **fields: object) -> None:
        self.audited.append((kind, fields))
