"""A bridge as a plugin: the parts put together, started, stopped, shown.

A face derives from `BridgePlugin[ItsConfig]` and says with `remote` how a connection is made. What
its `check` finds in files comes on top of what `super().check()` finds in the rules.

What the operator sees: `mqttd plugin NAME status`, `pause` and `resume`; gauges and counters at
/metrics; the retained message `$SYS/broker/connection/NAME/state`, `1` while the connection is up
and `0` otherwise.

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
from mqttd.api import BrokerServices, Event, InternalClient, Message, Plugin, Timer
from mqttd_plugins._bridge.dead_letters import DeadLetters
from mqttd_plugins._bridge.figures import Way
from mqttd_plugins._bridge.identity import Identity
from mqttd_plugins._bridge.inward import Inward
from mqttd_plugins._bridge.link import UP, Link
from mqttd_plugins._bridge.outward import Outward
from mqttd_plugins._bridge.remote import Remote
from mqttd_plugins._bridge.rules import Applied, BridgeConfig

BridgeConfigT = TypeVar("BridgeConfigT", bound=BridgeConfig)

_GAUGES_S: Final = 2.0
_ORIGINS: Final = "$SYS/broker/bridge/+/origin"


class BridgePlugin(Plugin[BridgeConfigT]):
    """The base of all bridges."""

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
        outward = Outward(broker, config, out, client, identity, Way("out", broker), dead_letters)
        inward = Inward(
            broker, back, config.window, client.publish, Way("in", broker), dead_letters
        )
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
        self._show()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        if self._client is not None:
            self._client.close()

    async def reload(self, config: BridgeConfigT) -> None:
        """The connection is made anew; what waits, waits on."""
        self._applied(config)
        if config == self.config:
            return
        await self.stop()
        self.config = config
        await self.start()

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
        queued = client.queued
        way = outward.figures.report()
        way["queued"] = queued
        way["matched"] = outward.figures.taken + queued
        way["lag_s"] = round(outward.lag_s, 3)
        return {
            "bridge": self.broker.name,
            "kind": self.KIND,
            "state": link.state,
            "reason": link.reason,
            "state_for_s": round(self.broker.now() - link.since, 1),
            "out": way,
            "in": inward.figures.report(),
        }

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

    def _show(self) -> None:
        """Set the gauges, now and from time to time."""
        if self.outward is None or self.link is None or self._client is None or not self._tasks:
            return
        gauge = self.broker.gauge
        gauge("up", float(self.link.state == UP))
        gauge("out_queued", self._client.queued)
        gauge("out_in_flight", self.outward.figures.in_flight)
        gauge("out_lag_seconds", self.outward.lag_s)
        self.broker.spawn(self._look_round(), "origins")
        self.broker.call_later(_GAUGES_S, self._show)
