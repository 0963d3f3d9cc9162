"""A bridge as a plugin: the parts put together, started, stopped, shown.

A face derives from `BridgePlugin[ItsConfig]` and says with `remote` how a connection is made. What
its `check` finds in files comes on top of what `super().check()` finds in the rules.

What the operator sees: `mqttd bridges`, with `pause` and `resume`; figures at /metrics; the
retained message `$SYS/broker/connection/NAME/state`, `1` while the connection is up and `0`
otherwise.

Must not know: any one system.

Invariants: everything that was started ends with `stop`; while the bridge is paused or down the
session goes on gathering; origins of all bridges of this broker are announced under `$SYS`, where
only the broker writes, so that each knows what has been here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from mqttd.api import DROPPED as DROPPED_EVENT
from mqttd.api import BrokerServices, Event, Figure, InternalClient, Message, Plugin, Timer
from mqttd_plugins._bridge.dead_letters import DeadLetters
from mqttd_plugins._bridge.figures import Way
from mqttd_plugins._bridge.identity import Identity
from mqttd_plugins._bridge.inward import Inward
from mqttd_plugins._bridge.link import PAUSED, UP, Link
from mqttd_plugins._bridge.outward import Outward
from mqttd_plugins._bridge.remote import Remote
from mqttd_plugins._bridge.rules import Applied, BridgeConfig

BridgeConfigT = TypeVar("BridgeConfigT", bound=BridgeConfig)

_LOOK_S: Final = 2.0
_ORIGINS: Final = "$SYS/broker/bridge/+/origin"


class BridgePlugin(Plugin[BridgeConfigT]):
    """The base of all bridges."""

    role = "bridge"
    watches: frozenset[str] = frozenset({DROPPED_EVENT})
    KIND: ClassVar[str] = ""
    """What the bridge leads to, for `status`: `kafka`."""

    def __init__(self, config: BridgeConfigT, broker: BrokerServices) -> None:
        super().__init__(config, broker)
        self.link: Link | None = None
        self.outward: Outward | None = None
        self.inward: Inward | None = None
        self.origin = ""  # what ids begin with, the same at every start
        self._client: InternalClient | None = None
        self._tasks: list[Timer] = []
        self._next_look: Timer | None = None

    @abstractmethod
    def remote(self) -> Remote:
        """A connection that hasn't been made yet."""

    async def prepare(self) -> None:
        """What a face does at a start, before its first connection; `origin` is known."""

    async def check(self) -> None:
        self._applied(self.config)

    async def start(self) -> None:
        broker, config = self.broker, self.config
        applied = self._applied(config)
        out = [one for one in applied if one.rule.direction == "out"]
        back = [one for one in applied if one.rule.direction == "in"]
        shared = any(one.rule.share is not None for one in out)
        identity = Identity(broker.table(), broker.table("ids"), shared)
        await identity.open()
        self.origin = identity.origin
        await self.prepare()
        client = await broker.client(
            config.client_id or f"bridge/{broker.name}", receive_maximum=config.window
        )
        self._client = client
        dead_letters = DeadLetters(broker.name, config.dead_letter, broker.publish)
        outward = Outward(broker, config, out, client, identity, Way("out"), dead_letters)
        inward = Inward(broker, back, config.window, client.publish, Way("in"), dead_letters)
        await outward.subscribe()
        await broker.publish(
            Message(
                f"$SYS/broker/bridge/{broker.name}/origin", identity.origin.encode(), retain=True
            )
        )
        self.outward, self.inward = outward, inward
        self.link = Link(broker, config, self.remote, outward, inward, self._state_changed)
        self._tasks = [
            broker.spawn(outward.take_all(), "outbox"),
            broker.spawn(inward.publish_all(), "intake"),
            broker.spawn(self.link.run(), "connection"),
        ]
        self._state_changed()
        self._keep_looking()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        if self.link is not None:
            self.link.stopped()
        if self._next_look is not None:
            self._next_look.cancel()
        if self._client is not None:
            self._client.close()

    async def reload(self, config: BridgeConfigT) -> None:
        """The connection is made anew, unless it is paused; what waits, waits on.

        After one that failed half way the bridge is stopped, and the next one starts it.
        """
        self._applied(config)
        if config == self.config and self._tasks:
            return
        paused = self.link is not None and self.link.state == PAUSED
        await self.stop()
        self.config = config
        await self.start()
        if paused and self.link is not None:
            self.link.pause()

    async def control(self, action: str, arguments: Mapping[str, object]) -> object:
        link = self.link
        if link is None or action not in ("status", "pause", "resume"):
            raise ValueError(f"{self.broker.name} has no action {action!r}: status, pause, resume")
        if action != "status":
            self.broker.audit(f"bridge_{action}")
            link.pause() if action == "pause" else link.resume()
        return self.status()

    def status(self) -> dict[str, Any]:
        """What is under way, for the operator."""
        link, outward, inward, client = self.link, self.outward, self.inward, self._client
        assert link is not None
        assert outward is not None
        assert inward is not None
        assert client is not None
        directions = {rule.direction for rule in self.config.all_rules()}
        way = outward.figures.report()
        way["queued"] = client.queued
        way["in_flight"] = self._in_flight(outward, client)
        way["matched"] = outward.figures.settled + way["in_flight"] + way["queued"]
        way["lag_s"] = round(outward.lag_s, 3)
        return {
            "bridge": self.broker.name,
            "kind": self.KIND,
            "state": link.state,
            "reason": link.reason,
            "state_for_s": round(self.broker.now() - link.since, 1),
            "ways": [each for each in ("out", "in") if each in directions],
            "out": way,
            "in": inward.figures.report(),
        }

    def figures(self) -> list[Figure]:
        """All of one instant, so that the identity of `figures` holds on the page, too."""
        link, outward, inward, client = self.link, self.outward, self.inward, self._client
        if link is None or outward is None or inward is None or client is None or not self._tasks:
            return []
        out = (("direction", "out"),)
        queued, in_flight = client.queued, self._in_flight(outward, client)
        return [
            Figure("bridge_up", int(link.state == UP)),
            Figure("bridge_matched", outward.figures.settled + in_flight + queued, out),
            Figure("bridge_queued", queued, out),
            Figure("bridge_in_flight", in_flight, out),
            Figure("bridge_lag_seconds", outward.lag_s, out),
            *outward.figures.figures(),
            Figure("bridge_in_flight", inward.figures.in_flight, (("direction", "in"),)),
            *inward.figures.figures(),
        ]

    def _in_flight(self, outward: Outward, client: InternalClient) -> int:
        """What the broker has handed out and isn't settled, also what wasn't taken up yet."""
        return max(outward.figures.in_flight, client.in_flight)

    def observe(self, events: Sequence[Event]) -> None:
        """What the outbox itself drops: it was full, or the message expired in it."""
        if self.outward is None or self._client is None:
            return
        for event in events:
            if event.client_id == self._client.client_id and event.reason != "no_local":
                self.outward.figures.never_taken(event.reason)

    def _applied(self, config: BridgeConfigT) -> list[Applied]:
        return [Applied(rule) for rule in config.all_rules()]

    def _state_changed(self) -> None:
        self.broker.spawn(self._tell_state(), "state")

    async def _tell_state(self) -> None:
        assert self.link is not None
        up = self.link.state == UP
        topic = f"$SYS/broker/connection/{self.broker.name}/state"
        await self.broker.publish(Message(topic, b"1" if up else b"0", retain=True))
        await self._look_round()

    async def _look_round(self) -> None:
        """Learn which bridges this broker has."""
        found = [message.payload.decode() async for message in self.broker.retained(_ORIGINS)]
        if self.inward is not None:
            self.inward.origins = frozenset(found)

    def _keep_looking(self) -> None:
        """Look round from time to time: bridges come and go with a reload."""
        self.broker.spawn(self._look_round(), "origins")
        self._next_look = self.broker.call_later(_LOOK_S, self._keep_looking)
