"""A remote system that does what a test tells it to, and a bridge to it.

`System` is what lasts (what arrived, what is to go wrong), `FakeRemote` one connection to it, and
`FakeBridge` the plugin, for brokers. `Desk` is a bridge without a broker: a stand-in for the
services with an outbox in a list, which can be ended and begun again like a process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from mqttd_plugins._bridge.dead_letters import DeadLetters
from mqttd_plugins._bridge.figures import Way
from mqttd_plugins._bridge.identity import Identity
from mqttd_plugins._bridge.inward import Inward
from mqttd_plugins._bridge.outward import Outward
from mqttd_plugins._bridge.plugin import BridgePlugin
from mqttd_plugins._bridge.remote import Done, Failure, Incoming, Intake, Item, Remote, Retry
from mqttd_plugins._bridge.rules import Applied, BridgeConfig, Rule

from mqttd.api import InternalClient, Message, MessageProperties, Received
from mqttd.testing import StandIn

PATIENCE = 30.0


class System:
    """The remote system: what it has, and how it behaves."""

    def __init__(self) -> None:
        self.arrived: list[Item] = []
        self.refuses: Failure | None = None  # the next connections
        self.answer: Callable[[Item], Failure | None] = lambda item: None
        self.silent = False  # items arrive and are not confirmed
        self.batch = 4
        self.per_key = 0
        self.connections: list[FakeRemote] = []

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.arrived]

    def remote(self) -> FakeRemote:
        made = FakeRemote(self)
        self.connections.append(made)
        return made

    def break_off(self, reason: str = "broken off") -> None:
        self.connections[-1].end(Retry(reason))

    @property
    def last(self) -> FakeRemote:
        return self.connections[-1]


class FakeRemote(Remote):
    def __init__(self, system: System) -> None:
        self.system = system
        self.batch = system.batch
        self.per_key = system.per_key
        self.intake: Intake | None = None
        self.unanswered: list[tuple[Item, Done]] = []
        self.closed = False
        self._over: asyncio.Future[Failure] | None = None

    def end(self, failure: Failure) -> None:
        assert self._over is not None
        if not self._over.done():
            self._over.set_result(failure)

    async def connect(self) -> None:
        self._over = asyncio.get_running_loop().create_future()
        if self.system.refuses is not None:
            raise self.system.refuses

    async def consume(self, intake: Intake) -> None:
        self.intake = intake

    async def send(self, items: Sequence[Item], done: Done) -> None:
        for item in items:
            failure = self.system.answer(item)
            if failure is None:
                self.system.arrived.append(item)
            if self.system.silent:
                self.unanswered.append((item, done))
            else:
                done(item, failure)

    async def wait(self) -> Failure:
        assert self._over is not None
        return await self._over

    async def close(self) -> None:
        self.closed = True


class FakeConfig(BridgeConfig):
    rules: list[Rule]


class FakeBridge(BridgePlugin[FakeConfig]):
    """For brokers in a test: `use: tests.bridges.kit:FakeBridge`, with `SYSTEM` put in place."""

    KIND = "fake"
    SYSTEM = System()

    def remote(self) -> Remote:
        return type(self).SYSTEM.remote()


def rules(*trees: dict[str, Any]) -> list[Rule]:
    return BridgeConfig(rules=[Rule.model_validate(tree) for tree in trees]).rules


def out(source: str, to: str = "{topic}", **more: Any) -> dict[str, Any]:
    return {"direction": "out", "from": source, "to": to, **more}


def back(source: str, to: str = "{topic}", **more: Any) -> dict[str, Any]:
    return {"direction": "in", "from": source, "to": to, **more}


class Outbox(InternalClient):
    """A session of a client inside: a queue, and what was handed out and not acknowledged."""

    def __init__(self) -> None:
        self.client_id = "bridge/desk"
        self.waiting: deque[Message] = deque()
        self.unacknowledged: dict[int, Message] = {}
        self.acknowledged = 0
        self.window = 8
        self.filters: dict[str, int] = {}
        self.published: list[Message] = []
        self.numbered = True  # as of a broker that keeps its messages, outside of groups
        self._again: deque[tuple[int, Message]] = deque()
        self._number = 0
        self._news = asyncio.Event()

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        self._news.set()

    def restart(self) -> None:
        """As after a restart of the broker: what wasn't acknowledged comes again, first."""
        self._again = deque(self.unacknowledged.items())
        self._news.set()

    async def subscribe(
        self,
        topic_filter: str,
        qos: int = 1,
        *,
        no_local: bool = True,
        retain_as_published: bool = True,
        retain_handling: int = 1,
    ) -> None:
        self.filters[topic_filter] = qos

    async def unsubscribe(self, topic_filter: str) -> None:
        del self.filters[topic_filter]

    @property
    def subscriptions(self) -> list[str]:
        return list(self.filters)

    async def __aiter__(self) -> AsyncIterator[Received]:
        while True:
            for received in await self.take():
                yield received

    async def take(self) -> list[Received]:
        while not self._again and not (self.waiting and len(self.unacknowledged) < self.window):
            self._news.clear()
            await self._news.wait()
        found: list[Received] = []
        while self._again:
            number, message = self._again.popleft()
            found.append(self._received(number, message, True))
        while self.waiting and len(self.unacknowledged) < self.window:
            message = self.waiting.popleft()
            self._number += 1
            if message.qos:
                self.unacknowledged[self._number] = message
            found.append(self._received(self._number, message, False))
        return found

    def _received(self, number: int, message: Message, duplicate: bool) -> Received:
        known = number if message.qos and self.numbered else 0
        return Received(message, duplicate, self._acknowledger(number), known)

    def _acknowledger(self, number: int) -> Callable[[int], None]:
        def acknowledge(reason: int) -> None:
            if self.unacknowledged.pop(number, None) is not None:
                self.acknowledged += 1
                self._news.set()

        return acknowledge

    async def publish(self, message: Message) -> int:
        self.published.append(message)
        return 1

    @property
    def queued(self) -> int:
        return len(self.waiting)

    @property
    def in_flight(self) -> int:
        return len(self.unacknowledged)

    def close(self) -> None:
        """The session stays."""


class Desk:
    """The two ways of a bridge, with everything that they need around them."""

    def __init__(self, *trees: dict[str, Any], **more: Any) -> None:
        parsed = [Rule.model_validate(tree) for tree in trees]
        self.config = BridgeConfig(rules=parsed, **more)
        self.services = StandIn("desk")
        self.outbox = Outbox()
        self.system = System()
        self.works: list[asyncio.Future[Any]] = []

    async def begin(self) -> None:
        applied = [Applied(rule) for rule in self.config.rules]
        services = self.services
        self.identity = Identity(services.table(), services.table("ids"))
        await self.identity.open()
        dead = DeadLetters("desk", self.config.dead_letter, services.publish)
        self.out_figures = Way("out")
        self.outward = Outward(
            services,
            self.config,
            [one for one in applied if one.rule.direction == "out"],
            self.outbox,
            self.identity,
            self.out_figures,
            dead,
        )
        self.inward = Inward(
            services,
            [one for one in applied if one.rule.direction == "in"],
            self.config.window,
            self.outbox.publish,
            Way("in"),
            dead,
        )
        await self.outward.subscribe()
        self.works = [
            asyncio.ensure_future(self.outward.take_all()),
            asyncio.ensure_future(self.inward.publish_all()),
        ]

    async def connect(self) -> FakeRemote:
        remote = self.system.remote()
        self.inward.begin()
        await remote.connect()
        self.works.append(asyncio.ensure_future(self.outward.send_all(remote)))
        await self.settle()
        return remote

    async def disconnect(self) -> None:
        """The connection is over."""
        sending = self.works.pop()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        self.outward.lost()
        self.inward.lost()

    async def end(self) -> None:
        """The process is over; the outbox and the tables stay."""
        for work in self.works:
            work.cancel()
        await asyncio.gather(*self.works, return_exceptions=True)
        self.works = []

    async def settle(self) -> None:
        """Let everything happen that can happen now."""
        for _ in range(60):
            await asyncio.sleep(0)

    def put(self, *payloads: str, topic: str = "t", qos: int = 1) -> None:
        for payload in payloads:
            self.outbox.put(Message(topic, payload.encode(), qos))

    @property
    def arrived(self) -> list[str]:
        return [item.payload.decode() for item in self.system.arrived]

    @property
    def dead(self) -> list[Message]:
        return [m for m in self.services.published if m.topic.startswith("$dlq")]


def incoming(
    rule: Rule,
    payload: bytes = b"x",
    *,
    topic: str = "remote",
    settled: list[Failure | None] | None = None,
    user: Sequence[tuple[str, str]] = (),
    **more: Any,
) -> Incoming:
    """What a face would put; answers are appended to `settled`."""
    answers: list[Failure | None] = [] if settled is None else settled
    properties = MessageProperties(user_properties=tuple(user))
    message = Message(topic, payload, 1, properties=properties)
    return Incoming(rule, message, answers.append, **more)


def reason_of(message: Message) -> str:
    return dict(message.properties.user_properties)["mqttd-dlq-reason"]


def dropping(message: Message) -> None:
    """The function of a rule that drops everything."""
