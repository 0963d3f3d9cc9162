"""A scenario: a fleet of devices, what happens to it in stages, and what must not come of it.

Owns the names of the keys, their defaults and their limits, but for those of a message's content
(`content`) and of the actions (`actions`). Reading a file, and all that needs
a second look (names that must exist, topics, thresholds), is `device_sim.language.load`.

    broker      where it is, or how to start one
    profiles    what devices are like, by name
    groups      so many devices of a kind
    stages      one after the other; the actions of a stage run side by side
    thresholds  terms as of --fail-on: what must not be
    seed        all chance of the run comes from it: same seed, same values, same instants
    drain       silence after which what is missing is lost

A group takes what it doesn't say itself from its profile. `Scenario.devices_of` gives the result:
an engine reads groups through it and never looks at profiles.

Must not know: files, sockets, how a device is run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from device_sim.judge.payload import HEADER_SIZE
from device_sim.language.actions import ActionModel, Bursts, Stage
from device_sim.language.content import Content, PayloadSize
from device_sim.language.shapes import (
    Devices,
    FileName,
    FileTemplate,
    Name,
    Node,
    Number,
    OneOf,
    Qos,
    Rate,
    Seconds,
    Size,
    Span,
    Time,
    refuse,
)

__all__ = [
    "ActionModel",
    "Broker",
    "Device",
    "Group",
    "PublishEntry",
    "RequestEntry",
    "RespondEntry",
    "Scenario",
    "Stage",
    "SubscribeEntry",
]

Version = Literal["3.1", "3.1.1", "5"]
MAX_STREAMS = 65_536


class Tls(Node):
    """TLS from the devices to the broker."""

    ca: FileName | None = None
    """PEM file with the authority; absent: the system's."""
    cert: FileTemplate | None = None
    """PEM file with the devices' certificate; a template, as ids are: each device may have one."""
    key: FileTemplate | None = None
    insecure: bool = False
    """Verify nothing."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.key and not self.cert:
            raise refuse("cert beside key")
        return self


class Launch(Node):
    """A broker of the scenario's own, on loopback, in a directory that is removed afterwards.

    The command and the files may name `{port}`, `{dir}` (its directory) and `{python}` (the
    interpreter that runs device_sim).
    """

    command: Annotated[list[str], Field(min_length=1)]
    files: dict[str, str] = {}
    """Written to the directory before the start: names and texts."""
    ready: str | None = None
    """A text in a line of its output; absent: it is ready when its port accepts."""
    timeout: Annotated[Time, Field(gt=0)] = 10.0
    """Until it is ready."""


class Broker(Node):
    """Where the devices connect to."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: 1883, with TLS 8883; for a broker that is started: a free one."""
    tls: Tls | None = None
    start: Launch | None = None

    @property
    def known_port(self) -> int:
        """The port as it is meant, still 0 for a free one."""
        if self.port or self.start is not None:
            return self.port
        return 8883 if self.tls is not None else 1883


class Credentials(Node):
    """Who the devices say they are; both are templates, as ids are."""

    username: str | None = None
    password: SecretStr | None = None
    password_env: str | None = None
    """The environment variable that holds the password."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.password is not None and self.password_env is not None:
            raise refuse("either password or password_env")
        return self


class Will(Node):
    """What the broker is to publish when the device is gone without a word."""

    topic: str
    payload: str = ""
    """A template, as ids are; the header comes before it."""
    qos: Qos = 0
    retain: bool = False
    delay: Seconds = 0
    """Will Delay Interval; needs MQTT 5."""


class Sleep(Node):
    """Devices that are connected for a while, then away, and so on."""

    awake: Annotated[Span, Field(gt=0)]
    asleep: Annotated[Span, Field(gt=0)]


class Flaky(Node):
    """Links that drop by chance: exponentially distributed times up and down."""

    up: Annotated[Span, Field(gt=0)]
    """Mean time between a connection and its loss."""
    down: Annotated[Span, Field(gt=0)]
    """Mean time until the device tries again."""
    mode: Literal["reset", "half_open"] = "reset"


class Reconnect(Node):
    """How a device comes back after it lost its connection: waits that double, with jitter."""

    first: Annotated[Span, Field(gt=0)] = 1.0
    most: Annotated[Span, Field(gt=0)] = 30.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Each wait is up to so large a part of itself longer."""


class Clock(Node):
    """How wrong the devices' clocks are; seen by `timestamp` fields only."""

    offset: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    """Seconds, the same for all; negative is slow."""
    spread: Annotated[float, Field(ge=0, le=1e8)] = 0.0
    """Standard deviation among devices, seconds."""
    drift: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    """Parts per million."""


class MessageStairs(Node):
    """The rate rises in equal steps from its n-th part, and is all there when `over` is over."""

    steps: Annotated[int, Field(ge=2, le=1000)]
    over: Annotated[Span, Field(gt=0)]


class MessageArrival(OneOf):
    """How messages arrive, when it takes a number to say."""

    step: MessageStairs | None = None
    burst: Bursts | None = None


class Paced(Content):
    """What a device sends by itself, and how often."""

    name: Name | None = None
    """What `publish` actions call it."""
    every: Annotated[Span, Field(gt=0)] | None = None
    """The mean time between two messages of a device."""
    rate: Rate | None = None
    """The same as messages per second. With neither: as fast as the window allows."""
    arrival: Literal["linear", "poisson"] | MessageArrival = "linear"
    together: bool = False
    """All devices of the group at the same instants; otherwise they are spread over `every`."""
    count: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    """Messages of a device in the whole run, then no more."""

    @model_validator(mode="after")
    def _pace(self) -> Self:
        if self.every is not None and self.rate is not None:
            raise refuse("either every or rate")
        if self.interval is None and (self.arrival != "linear" or self.together):
            raise refuse("every or rate beside arrival and together")
        return self

    @property
    def interval(self) -> float | None:
        """Mean seconds between two messages of a device; None for a closed loop."""
        if self.rate is not None:
            return 1.0 / self.rate
        return self.every


class OnChange(Node):
    """Send only what has changed: the entry's pace is that of looking."""

    fields: Annotated[dict[str, Annotated[Number, Field(ge=0)]], Field(min_length=1)]
    """Fields, and by how much one has to differ from what was sent last; 0: at all."""
    heartbeat: Span | None = None
    """After so long without a message one is sent anyway."""


class Transfer(Node):
    """A large file in pieces, one message each, as fast as the window allows."""

    size: Annotated[Size, Field(ge=1)]
    chunk: PayloadSize
    """Payload of each message, its header included; the last one is shorter."""

    @property
    def messages(self) -> int:
        """How many messages it takes."""
        return -(-self.size // self.chunk)

    @property
    def payloads(self) -> list[int]:
        """Their payload sizes; the last one has at least its header."""
        rest = self.size - (self.messages - 1) * self.chunk
        return [self.chunk] * (self.messages - 1) + [max(rest, HEADER_SIZE)]


class PublishEntry(Paced):
    """Messages that a device publishes."""

    topic: str
    """A template: `{run}` `{group}` `{index}` `{id}` `{stream}` and the tags of the group."""
    streams: Annotated[int, Field(ge=1, le=MAX_STREAMS)] = 1
    """So many topics, used in turn: `{stream}` counts from 0."""
    on_change: OnChange | None = None
    transfer: Transfer | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.transfer is not None and (self.fields or self.size is not None):
            raise refuse("transfer without fields and size")
        if self.transfer is not None and self.interval is None:
            raise refuse("every or rate beside transfer")
        if self.on_change is not None and self.interval is None:
            raise refuse("every or rate beside on_change")
        return self


class SubscribeEntry(Node):
    """What a device subscribes to."""

    filters: Annotated[list[str], Field(min_length=1)]
    """Templates, as ids are, with wildcards."""
    qos: Qos = 0
    share: Name | None = None
    """Name of a shared subscription: each message goes to one of its members."""
    retain_handling: Literal["always", "new", "never"] = "always"
    """Whether retained messages come; not always needs MQTT 5."""
    retain_as_published: bool = False
    """Needs MQTT 5."""
    no_local: bool = False
    """Not the device's own messages; needs MQTT 5."""


class RequestEntry(Paced):
    """Requests to the devices of a group in turn, with correlation data; one is open at a time."""

    topic: str
    """A template like those of `publish`, with `{target}`, the id of the device that is asked, and
    `{target_index}` and `{target_…}` for each of its tags."""
    targets: str
    """The name of their group."""
    response: str
    """Response Topic, a template; the device subscribes to it."""
    timeout: Annotated[Time, Field(gt=0)] = 10.0
    """After this a request is unanswered, and the next one goes out."""


class RespondEntry(Content):
    """Responses to requests: to their Response Topic, with their correlation data; MQTT 5."""

    filter: str
    """A template, as ids are."""
    delay: Span = 0.0
    """How long the device thinks."""


class Device(Node):
    """What a device is like; the same keys in a profile and in a group."""

    version: Version = "5"
    credentials: Credentials | None = None
    tls: Tls | None = None
    """Absent: that of the broker."""
    clean_start: bool = True
    """Of the first connection of the run; later ones resume a session that has an expiry."""
    session_expiry: Seconds = 0
    """How long the session outlives the connection; before MQTT 5: 0 is a clean session."""
    keep_alive: Annotated[Seconds, Field(le=65535)] = 60
    receive_maximum: Annotated[int, Field(ge=1, le=65535)] | None = None
    """QoS 1 and 2 messages in flight to the device; needs MQTT 5."""
    window: Annotated[int, Field(ge=1, le=65535)] = 100
    """QoS 1 and 2 messages in flight from the device, in a closed loop all."""
    will: Will | None = None
    publish: list[PublishEntry] = []
    subscribe: list[SubscribeEntry] = []
    request: list[RequestEntry] = []
    respond: list[RespondEntry] = []
    sleep: Sleep | None = None
    flaky: Flaky | None = None
    # Validated like one from a file, so that it shrinks with the scenario.
    reconnect: Reconnect | None = Field(default={})  # type: ignore[assignment]
    """null: it stays away."""
    clock: Clock | None = None
    offline: Literal["skip", "keep"] = "skip"
    """What becomes due without a connection: isn't sent, or is sent afterwards."""


class Group(Device):
    """So many devices of a kind."""

    name: Name
    count: Devices = 1
    id: Annotated[str, Field(min_length=1)] = "{group}-{index:05d}"
    """Client identifiers: a template with `{run}` `{group}` `{index}` and the tags."""
    profile: str | None = None
    tags: dict[Name, Annotated[int, Field(ge=1)] | Annotated[list[str], Field(min_length=1)]] = {}
    """Values dealt out to the devices, the first tag fastest; a number n: 0 to n-1."""


class Scenario(Node):
    """The whole file."""

    scenario: Annotated[str, Field(min_length=1, max_length=80)]
    """Its title."""
    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    broker: Broker = Broker()
    profiles: dict[Name, Device] = {}
    groups: Annotated[list[Group], Field(min_length=1)]
    stages: Annotated[list[Stage], Field(min_length=1)]
    thresholds: list[str] = []
    """Like `lost>0` or `p99>50ms`."""
    drain: Annotated[Time, Field(gt=0)] = 3.0

    def devices_of(self, group: Group) -> Group:
        """The group with what it takes from its profile."""
        if group.profile is None:
            return group
        profile = self.profiles[group.profile]
        taken: dict[str, Any] = {
            key: getattr(profile, key)
            for key in profile.model_fields_set
            if key not in group.model_fields_set
        }
        return group.model_copy(update={**taken, "profile": None})

    def chosen(self, names: list[str]) -> list[Group]:
        """The groups an action is for, complete; all of them when it names none."""
        return [self.devices_of(group) for group in self.groups if not names or group.name in names]

    def carried(self) -> list[Group]:
        """The groups whose connections go through a proxy, since their network gets worse."""
        named = [
            action.network.groups
            for stage in self.stages
            for action in stage.actions
            if action.network is not None
        ]
        return [
            self.devices_of(group)
            for group in self.groups
            if any(not names or group.name in names for names in named)
        ]
