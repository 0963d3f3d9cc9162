"""What a flood is to do: its settings, and who publishes and watches which topic.

Owns the command's parameters with their defaults and limits, and the arithmetic from them to
topics, filters and the tracks that each subscriber is owed. Pure, and complete before the first
connection: whatever is wrong with the parameters is a `UsageError` here.

A topic pattern names its parts: `{run}` (8 hex digits), `{group}` (the device's subscriber),
`{device}` and `{stream}`. Two ways to watch:

    split   every stream is owed to one subscriber, the one of its device's group
    all     every stream is owed to every subscriber

A subscriber asks for as few filters as the pattern allows: a level with a part that varies becomes
`+`. Where that would match the devices of other groups (split, and no level of the pattern tells
the groups apart) it asks for each of its topics by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from string import Formatter
from typing import Final

from device_sim.judge.payload import HEADER_SIZE, MAX_STREAM
from mqttd.core import spec
from mqttd.core.packets import Filter
from mqttd.core.properties import Properties, encode_forwardable

DEFAULT_PATTERN: Final = "device_sim/{run}/{group}/{device}/{stream}"
PARTS: Final = frozenset({"run", "group", "device", "stream"})
MAX_DEVICES: Final = 1_000_000
MAX_PAYLOAD: Final = 256 * 1024 * 1024
DEFAULT_SUBSCRIBERS: Final = 10
DEFAULT_WINDOW_CLOSED: Final = 10
DEFAULT_WINDOW_PACED: Final = 1000
FILTERS_A_PACKET: Final = 200
VERSIONS: Final = {"3.1": spec.MQTT31, "3.1.1": spec.MQTT311, "5": spec.MQTT5}


class UsageError(Exception):
    """The parameters ask for something that can't be done; the text says what."""


@dataclass
class Settings:
    """Everything the command line can say."""

    host: str = "127.0.0.1"
    port: int = 1883
    devices: int = 10
    rate: float = 0.0
    qos: tuple[int, ...] = (0,)
    seconds: float = 10.0
    count: int = 0
    size: int = 64
    window: int = 0
    streams: int = 1
    subscribers: int = -1
    subscriber_qos: int = 2
    watch: str = "split"
    pattern: str = DEFAULT_PATTERN
    version: int = spec.MQTT311
    user_properties: list[tuple[str, str]] = field(default_factory=list)
    username: str | None = None
    password: str | None = None
    keep_alive: int = 60
    tls: bool = False
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    insecure: bool = False
    connect_parallel: int = 50
    connect_rate: float = 0.0
    connect_timeout: float = 10.0
    settle: float = 3.0

    @property
    def paced(self) -> bool:
        """Messages are due at a rate, as opposed to closed-loop."""
        return self.rate > 0

    def check(self) -> None:
        """Refuse what makes no sense; fill in what depends on other settings."""
        _within("devices", self.devices, 1, MAX_DEVICES)
        _within("port", self.port, 1, 65535)
        _within("size", self.size, HEADER_SIZE, MAX_PAYLOAD)
        _within("streams", self.streams, 1, MAX_STREAM + 1)
        _within("count", self.count, 0, 2**32 - 1)
        _within("window", self.window, 0, 65535)
        _within("keep-alive", self.keep_alive, 0, 65535)
        _within("connect-parallel", self.connect_parallel, 1, MAX_DEVICES)
        if self.rate < 0 or self.connect_rate < 0:
            raise UsageError("a rate can't be negative")
        if self.seconds <= 0 and self.count == 0:
            raise UsageError("give a time (-t) or a count (-c)")
        if self.settle < 0 or self.connect_timeout <= 0:
            raise UsageError("settle and connect-timeout are positive numbers of seconds")
        if self.watch not in ("split", "all"):
            raise UsageError("watch is 'split' or 'all'")
        if self.subscribers < 0:
            self.subscribers = min(self.devices, DEFAULT_SUBSCRIBERS)
        if self.watch == "split" and self.subscribers > self.devices:
            raise UsageError(
                f"{self.subscribers} subscribers can't share {self.devices} devices; "
                "use --watch all or fewer subscribers"
            )
        if self.window == 0:
            self.window = DEFAULT_WINDOW_PACED if self.paced else DEFAULT_WINDOW_CLOSED
        if self.user_properties and self.version != spec.MQTT5:
            raise UsageError("user properties need MQTT 5 (-V 5)")
        if self.password is not None and self.username is None and self.version < spec.MQTT5:
            raise UsageError("before MQTT 5 a password needs a user name")
        if self.keyfile and not self.certfile:
            raise UsageError("a key (--key) needs its certificate (--cert)")
        _check_pattern(self)

    def qos_of(self, device: int) -> int:
        """The QoS that a device publishes with: several are dealt out in turn."""
        return self.qos[device % len(self.qos)]

    def publish_properties(self) -> bytes:
        """The properties of every PUBLISH, encoded."""
        properties = Properties()
        properties.user_properties.extend(self.user_properties)
        return encode_forwardable(properties)


class Plan:
    """The topics of a run and who is owed which."""

    def __init__(self, settings: Settings, run: int) -> None:
        self.settings = settings
        self.run = run

    @property
    def fan(self) -> int:
        """To how many subscribers each message is owed."""
        if self.settings.watch == "all":
            return self.settings.subscribers
        return 1 if self.settings.subscribers else 0

    def group(self, device: int) -> int:
        """The group, and with `split` the subscriber, of a device."""
        return device % max(1, self.settings.subscribers)

    def topic(self, device: int, stream: int) -> str:
        """Where one stream of one device is published."""
        return self.settings.pattern.format(
            run=f"{self.run:08x}", group=self.group(device), device=device, stream=stream
        )

    def owed(self, subscriber: int) -> Iterator[tuple[int, int]]:
        """The (device, stream) pairs that a subscriber is to receive."""
        step = self.settings.subscribers if self.settings.watch == "split" else 1
        first = subscriber if self.settings.watch == "split" else 0
        for device in range(first, self.settings.devices, step):
            for stream in range(self.settings.streams):
                yield device, stream

    def filters(self, subscriber: int) -> list[Filter]:
        """What a subscriber subscribes to."""
        levels = self.settings.pattern.split("/")
        split = self.settings.watch == "split" and self.settings.subscribers > 1
        varying = {"device", "stream"} if split else {"device", "stream", "group"}
        levels = ["+" if _parts(level) & varying else level for level in levels]
        if split and not any("group" in _parts(level) for level in levels):
            names = [self.topic(device, stream) for device, stream in self.owed(subscriber)]
        else:
            names = ["/".join(levels).format(run=f"{self.run:08x}", group=subscriber)]
        return [Filter(name, self.settings.subscriber_qos) for name in names]


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}; it has to be from {low} to {high}")


def _parts(pattern: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}


def _check_pattern(settings: Settings) -> None:
    pattern = settings.pattern
    try:
        parts = _parts(pattern)
        unknown = parts - PARTS
        if unknown:
            raise UsageError(
                f"topic pattern: {{{sorted(unknown)[0]}}} is not known; "
                "the parts are {run} {group} {device} {stream}"
            )
        example = pattern.format(run="0" * 8, group=0, device=0, stream=0)
    except (ValueError, LookupError) as error:
        raise UsageError(f"topic pattern: {error}") from None
    if "device" not in parts and settings.devices > 1:
        raise UsageError("topic pattern: without {device} all devices would share one topic")
    if "stream" not in parts and settings.streams > 1:
        raise UsageError("topic pattern: without {stream} all streams would share one topic")
    if "+" in example or "#" in example or "\0" in example or not example:
        raise UsageError("topic pattern: a topic is not empty and has no '+', '#' or NUL")
    if example.startswith("$"):
        raise UsageError("topic pattern: topics that start with '$' belong to the broker")
    if len(example.encode("utf-8", "surrogatepass")) > 65000:
        raise UsageError("topic pattern: too long")
