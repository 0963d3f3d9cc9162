"""What happens in the stages of a scenario: the actions and their parameters.

Every action begins `at` so long after its stage began, and none outlives its stage. `groups` names
the groups it is for; absent or empty, it is for all of them. `fraction` picks so large a part of
their devices, by chance, at least one.

Owns the keys, their defaults and limits. Carrying them out is the engine's business.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from device_sim.language.shapes import (
    Node,
    OneOf,
    Part,
    Share,
    Size,
    Span,
    Time,
    refuse,
)


class Stairs(Node):
    """The rate rises in equal steps, from its n-th part to all of it."""

    steps: Annotated[int, Field(ge=2, le=1000)]


class Bursts(Node):
    """So many at the same instant, then a pause that keeps the mean rate."""

    size: Annotated[int, Field(ge=1, le=1_000_000)]


class ArrivalModel(OneOf):
    """How devices arrive, when it takes a number to say."""

    step: Stairs | None = None
    burst: Bursts | None = None


class Action(Node):
    """What all actions have."""

    at: Span = 0.0
    """When, from the begin of the stage."""


class GroupAction(Action):
    """An action on devices."""

    groups: list[str] = Field(default=[])
    """Names of groups; empty: all."""


class Connect(GroupAction):
    """Devices that aren't connected connect, and subscribe."""

    fraction: Part = 1.0
    over: Span = 0.0
    """How long it takes until the last one has begun; 0: as fast as `parallel` allows."""
    arrival: Literal["linear", "poisson"] | ArrivalModel = "linear"
    """How they are spread over that time."""
    parallel: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Connects under way at the same time."""
    timeout: Annotated[Time, Field(gt=0)] = 10.0
    """Until CONNACK, and until each SUBACK."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.arrival != "linear" and not self.over:
            raise refuse("over: a time to spread the arrivals over")
        return self


class Publish(GroupAction):
    """Devices send what their `publish` and `request` entries say."""

    entries: list[str] = Field(default=[])
    """Names of entries; empty: all."""
    duration: Span | None = None
    """Absent: until the stage ends."""
    count: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    """Messages of each device and entry, then no more."""
    factor: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """So many times the rate of the entries."""


class Disconnect(GroupAction):
    """Devices lose their connection.

    clean sends DISCONNECT and stays away until a `connect`; after the others a device comes back
    as its `reconnect` says. reset closes without a word (a crash: the will is due); half_open goes
    silent and leaves the connection standing (power loss: the broker has to notice by itself).
    """

    fraction: Part = 1.0
    over: Span = 0.0
    """Spread evenly over this time."""
    mode: Literal["clean", "reset", "half_open"] = "clean"


class SlowReader(GroupAction):
    """Devices read their sockets slowly."""

    fraction: Part = 1.0
    rate: Size
    """Bytes per second and device; 0 reads nothing."""
    duration: Span | None = None
    """Absent: until the stage ends."""


class Pause(GroupAction):
    """Devices hang: connected, but neither reading nor writing, nor pinging."""

    fraction: Part = 1.0
    duration: Span | None = None
    """Absent: until the stage ends."""


class KillBroker(Action):
    """The broker that the scenario started gets a signal, and is waited for."""

    signal: Literal["kill", "term"] = "kill"


class RestartBroker(Action):
    """The broker is started again with the same command, port and directory; stopped if need be."""

    timeout: Annotated[Time, Field(gt=0)] = 10.0
    """Until it is ready."""


class Network(GroupAction):
    """The way between devices and broker gets worse, in the simulator's own proxy."""

    direction: Literal["both", "up", "down"] = "both"
    """up: from the devices to the broker."""
    delay: Time = 0.0
    """Added to what passes."""
    jitter: Time = 0.0
    """Up to so much more, by chance; the order of a connection's bytes is kept."""
    bandwidth: Annotated[Size, Field(ge=1)] | None = None
    """Bytes per second of each connection."""
    cut: bool = False
    """Nothing passes and no connection ends: a link that is down."""
    corrupt: Share = 0.0
    """The share of pieces read from a socket in which one bit is turned."""
    duration: Span | None = None
    """Absent: until the stage ends."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.delay or self.jitter or self.bandwidth or self.cut or self.corrupt):
            raise refuse("one of delay, jitter, bandwidth, cut, corrupt")
        return self


class Wait(GroupAction):
    """The stage goes on until a time or a state."""

    duration: Span | None = None
    until: Literal["connected", "settled"] | None = None
    """connected: every device is; settled: nothing that can still come is missing."""
    timeout: Time | None = None
    """How long `until` is waited for; the run is broken off after it. Absent: 30 s."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.duration is None) == (self.until is None):
            raise refuse("either duration or until")
        if self.timeout is not None and self.until is None:
            raise refuse("until beside timeout")
        return self


class ActionModel(OneOf):
    """One action: its name, and what it needs."""

    connect: Connect | None = None
    publish: Publish | None = None
    disconnect: Disconnect | None = None
    slow_reader: SlowReader | None = None
    pause: Pause | None = None
    kill_broker: KillBroker | None = None
    restart_broker: RestartBroker | None = None
    network: Network | None = None
    wait: Wait | None = None


class Stage(Node):
    """Actions side by side; the next stage begins when this one is over."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    duration: Span | None = None
    """Absent: until all its actions are done."""
    actions: list[ActionModel] = Field(default=[])
