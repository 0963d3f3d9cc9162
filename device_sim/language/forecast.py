"""What a scenario is going to do, without a broker: clients, messages and deliveries by stage.

Owns the arithmetic of `device_sim plan`. Topics are rendered for every device and matched against
every subscription, so the number of deliveries of a message is exact; how many messages there are
is exact where they come evenly and the devices stay connected, and an expectation where chance, a
sleep or a change decides.

Must not know: how a scenario is read or printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from device_sim.language.actions import Publish, Stage
from device_sim.language.naming import Filters, Names, Template
from device_sim.language.scenario import (
    Group,
    MessageArrival,
    MessageStairs,
    Paced,
    PublishEntry,
    RequestEntry,
    Scenario,
)

_RUN: Final = "0" * 8
_ROUNDING: Final = 1e-9
"""So that what is due exactly at the end isn't counted for a digit far behind the point."""


@dataclass
class Stream:
    """One entry of a group: what its devices send, and to how many subscribers."""

    group: str
    entry: str
    topic: str
    """That of the first device."""
    qos: str
    rate: float | None
    """Messages per second of all devices at a factor of 1; None for a closed loop."""
    fan: float
    """Deliveries of a message, the mean over all devices."""
    note: str = ""


@dataclass
class Clients:
    """One group."""

    group: str
    count: int
    version: str
    first_id: str
    filters: int
    """Subscriptions of one device."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Act:
    """One stage."""

    name: str
    seconds: float
    """Its duration as far as it is known."""
    actions: list[str]
    messages: float = 0.0
    deliveries: float = 0.0
    rate: float = 0.0
    """Messages per second at the most, of those that are paced."""
    closed_loop: bool = False
    """Some messages come as fast as they can and aren't counted."""


@dataclass
class Forecast:
    """The whole plan."""

    scenario: str
    seed: int
    clients: list[Clients]
    streams: list[Stream]
    stages: list[Act]

    @property
    def connections(self) -> int:
        """Clients in all."""
        return sum(each.count for each in self.clients)

    @property
    def seconds(self) -> float:
        """The stages one after the other, as far as they are known."""
        return sum(each.seconds for each in self.stages)

    @property
    def messages(self) -> float:
        """Publications in all, of those that are paced."""
        return sum(each.messages for each in self.stages)

    @property
    def deliveries(self) -> float:
        """What subscribers are to receive of them."""
        return sum(each.deliveries for each in self.stages)


def forecast(scenario: Scenario) -> Forecast:
    """The plan of a checked scenario."""
    groups = scenario.chosen([])
    audience = _audience(groups)
    clients = [_clients(group) for group in groups]
    streams: list[Stream] = []
    fans: dict[tuple[str, str], float] = {}
    for group in groups:
        for key, entry in entries_of(group):
            stream = _stream(group, key, entry, scenario, audience)
            fans[group.name, key] = stream.fan
            streams.append(stream)
    stages = [_act(scenario, stage, fans) for stage in scenario.stages]
    return Forecast(scenario.scenario, scenario.seed, clients, streams, stages)


def entries_of(group: Group) -> list[tuple[str, PublishEntry | RequestEntry]]:
    """What a device of the group sends by itself, with the keys that tell the entries apart."""
    return [
        *((f"publish[{at}]", entry) for at, entry in enumerate(group.publish)),
        *((f"request[{at}]", entry) for at, entry in enumerate(group.request)),
    ]


def _names(group: Group, index: int, pattern: Template) -> Names:
    return Names(_RUN, group.name, index, pattern, group.tags)


def _audience(groups: list[Group]) -> Filters[tuple[str, str]]:
    """Every subscription; what is found under it is a client, or a shared subscription."""
    audience: Filters[tuple[str, str]] = Filters()
    for group in groups:
        pattern = Template(group.id)
        entries = [(entry.share, [Template(f) for f in entry.filters]) for entry in group.subscribe]
        entries += [(None, [Template(entry.filter)]) for entry in group.respond]
        entries += [(None, [Template(entry.response)]) for entry in group.request]
        if not entries:
            continue
        shared: set[tuple[str, str]] = set()
        for index in range(group.count):
            names = _names(group, index, pattern)
            for share, filters in entries:
                for each in filters:
                    text = names.render(each)
                    if share is None:
                        audience.add(text, ("client", names.client_id))
                    elif (share, text) not in shared:
                        shared.add((share, text))
                        audience.add(text, ("share", f"{share}/{text}"))
    return audience


def _clients(group: Group) -> Clients:
    notes = []
    if group.sleep is not None:
        notes.append(f"awake {group.sleep.awake:g} s, asleep {group.sleep.asleep:g} s")
    if group.flaky is not None:
        notes.append(f"drops every {group.flaky.up:g} s for {group.flaky.down:g} s")
    if group.will is not None:
        notes.append("will")
    if group.tls is not None:
        notes.append("TLS")
    if not group.clean_start or group.session_expiry:
        notes.append(f"session of {group.session_expiry} s")
    filters = sum(len(entry.filters) for entry in group.subscribe)
    filters += len(group.respond) + len(group.request)
    first = _names(group, 0, Template(group.id)).client_id
    return Clients(group.name, group.count, group.version, first, filters, notes)


def _stream(
    group: Group,
    key: str,
    entry: PublishEntry | RequestEntry,
    scenario: Scenario,
    audience: Filters[tuple[str, str]],
) -> Stream:
    pattern, topic = Template(group.id), Template(entry.topic)
    per_device = entry.streams if isinstance(entry, PublishEntry) else 1
    extra: dict[str, str | int] = {"stream": 0}
    if isinstance(entry, RequestEntry):
        targets = next(each for each in scenario.groups if each.name == entry.targets)
        extra |= _names(targets, 0, Template(targets.id)).as_target(targets.tags)
    reached = 0
    first = ""
    for index in range(group.count):
        names = _names(group, index, pattern)
        for stream in range(per_device):
            extra["stream"] = stream
            text = names.render(topic, extra)
            first = first or text
            reached += len(set(audience.match(text)))
    rate = None if entry.interval is None else group.count / entry.interval * _size_of(entry)
    qos = str(entry.qos) if isinstance(entry.qos, int) else ",".join(map(str, entry.qos))
    fan = reached / (group.count * per_device)
    return Stream(group.name, entry.name or key, first, qos, rate, fan, _note(group, entry))


def _size_of(entry: Paced) -> int:
    """Messages for each time that the entry is due."""
    if isinstance(entry, PublishEntry) and entry.transfer is not None:
        return entry.transfer.messages
    return 1


def _note(group: Group, entry: PublishEntry | RequestEntry) -> str:
    notes = []
    if isinstance(entry, RequestEntry):
        notes.append(f"requests to {entry.targets}")
    elif entry.on_change is not None:
        notes.append("at most: sent on change")
    elif entry.transfer is not None:
        notes.append(f"{entry.transfer.messages} messages a transfer")
    if (group.sleep is not None or group.flaky is not None) and group.offline == "skip":
        notes.append("less while offline")
    return ", ".join(notes)


def _act(scenario: Scenario, stage: Stage, fans: dict[tuple[str, str], float]) -> Act:
    seconds = stage.duration if stage.duration is not None else _length(stage)
    act = Act(stage.name, seconds, [action.kind for action in stage.actions])
    for action in stage.actions:
        if isinstance(action.body, Publish):
            _add(act, scenario, action.body, fans)
    return act


def _add(act: Act, scenario: Scenario, body: Publish, fans: dict[tuple[str, str], float]) -> None:
    """What one `publish` action adds to its stage."""
    left_s = act.seconds - body.at
    seconds = left_s if body.duration is None else min(body.duration, left_s)
    for group in scenario.chosen(body.groups):
        for key, entry in entries_of(group):
            if body.entries and entry.name not in body.entries:
                continue
            limits = [each for each in (body.count, entry.count) if each is not None]
            limit = min(limits, default=None)
            if entry.interval is None:
                if limit is None:
                    act.closed_loop = True
                    continue
                due = float(limit * group.count)
            else:
                due = _due(entry, group.count, seconds, body.factor, limit)
                act.rate += group.count * body.factor / entry.interval
            messages = due * _size_of(entry)
            act.messages += messages
            act.deliveries += messages * fans[group.name, key]
            if isinstance(entry, RequestEntry):  # each is answered, to one subscriber
                act.messages += messages
                act.deliveries += messages


def _length(stage: Stage) -> float:
    """How long the actions take that have an end, as far as that can be known."""
    longest = 0.0
    for action in stage.actions:
        body = action.body
        known = getattr(body, "duration", None) or getattr(body, "over", None) or 0.0
        longest = max(longest, body.at + known)
    return longest


def _due(entry: Paced, devices: int, seconds: float, factor: float, limit: int | None) -> float:
    """How many times an entry comes due for all devices in so many seconds."""
    assert entry.interval is not None
    step_s = entry.interval / factor
    most = math.inf if limit is None else limit
    arrival = entry.arrival
    if arrival == "poisson":
        return devices * min(seconds / step_s, most)
    area, burst = seconds / step_s, 1
    if isinstance(arrival, MessageArrival):
        if arrival.step is not None:
            area = _under_stairs(arrival.step, seconds) / step_s
        elif arrival.burst is not None:
            burst = arrival.burst.size
    total = 0.0
    for index in range(devices):
        phase = 0.0 if entry.together else index / devices
        due = math.ceil(area / burst - phase - _ROUNDING)
        total += min(max(0, due) * burst, most)
    return total


def _under_stairs(stairs: MessageStairs, seconds: float) -> float:
    """Seconds at the full rate that bring as much as so many seconds from the first stair on."""
    area, left, stair_s = 0.0, seconds, stairs.over / stairs.steps
    for height in range(1, stairs.steps + 1):
        area += min(max(left, 0.0), stair_s) * height / stairs.steps
        left -= stair_s
    return area + max(left, 0.0)
