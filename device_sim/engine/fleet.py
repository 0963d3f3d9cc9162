"""From a scenario to devices that are ready to run, and to books that know who is owed what.

Owns the set-up: every device with its client and its subscriptions, a feed for each of its entries,
and a track wherever a topic that is published fits a filter that is subscribed to. The matching is
the simulator's own (`naming.Filters`). Streams that begin later, responses on topics that a request
named, are bound in the same way.

What can't be judged isn't: a topic that several publishers retain messages on has no last one that
anybody could name, and wills that come to a shared subscription may go to any of its members.

A fleet may be one slice of several, each driven by a process of its own: it has every n-th device
of each group, at least one, and a topic space of its own below `w0/`, `w1/`, …, so that everything
that is owed is owed within the slice.

Must not know: the clock, sockets, stages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from device_sim.engine.device import Device
from device_sim.engine.dialogue import Answering, Asking, Dialogue, Roles
from device_sim.engine.feed import Feed, Layout
from device_sim.engine.publisher import template
from device_sim.engine.subscriptions import Owed, Subscription
from device_sim.engine.surroundings import Surroundings
from device_sim.judge.ledger import Ledger
from device_sim.judge.oracles import Replay, Retained
from device_sim.judge.payload import HEADER_SIZE, Header, padding
from device_sim.judge.payload import Template as Frame
from device_sim.judge.tracks import Share, Track
from device_sim.language.content import Content
from device_sim.language.forecast import entries_of
from device_sim.language.naming import Filters, Names, Template
from device_sim.language.scenario import (
    Group,
    PublishEntry,
    RequestEntry,
    RespondEntry,
    Scenario,
    Transfer,
)
from device_sim.language.values import DeviceClock, Recipe, Source, filling
from mqttd.core import spec
from mqttd.core.packets import Filter
from mqttd.core.properties import Properties, encode_forwardable

MAX_TARGETS: Final = 64
"""A device asks so many others at the most; they are dealt out so that all are asked."""
_HANDLING: Final = {"always": 0, "new": 1, "never": 2}


class Reader:
    """A subscription that messages may come to, its device's own or one that is shared."""

    def __init__(self, device: Device, subscription: Subscription) -> None:
        self.members = [(device, subscription)]
        self.share: Share | None = None
        self.qos = subscription.wanted.qos


class Fleet:
    """All devices of a run, or of a slice of it."""

    def __init__(
        self, scenario: Scenario, around: Surroundings, place: int = 0, slices: int = 1
    ) -> None:
        self.scenario = scenario
        self.around = around
        self.place = place
        self.slices = slices
        self.ledger: Ledger = around.switchboard.ledger
        if slices > 1:
            around.prefix = f"w{place}/"
        self.groups = scenario.chosen([])
        self.devices: dict[str, list[Device]] = {}
        self.dialogues: list[Dialogue] = []
        self.roles = Roles()
        self.entries: dict[tuple[str, str], list[Feed]] = {}
        """Feeds by group and key of their entry, one for each device."""
        self._readers: Filters[Reader] = Filters()
        self._shared: dict[str, Reader] = {}
        self._retainers: dict[bytes, int] = {}
        self._owed: list[tuple[bytes, Owed]] = []
        self._recipes: dict[tuple[str, str], Recipe] = {}
        self._fillers: dict[int, bytes] = {}
        for group in self.groups:
            self._populate(group)
        for group in self.groups:
            for device in self.devices[group.name]:
                self._subscribe(device)
        for group in self.groups:
            for device in self.devices[group.name]:
                self._equip(device)
        for topic, owed in self._owed:
            owed.contested = self._retainers.get(topic, 0) > 1
        self._owed.clear()
        for share in self.ledger.shares:
            share.ordered = True  # nobody was there yet who could have left

    def everybody(self) -> list[Device]:
        """All devices."""
        return [device for devices in self.devices.values() for device in devices]

    # Devices

    def _populate(self, group: Group) -> None:
        pattern = Template(group.id)
        if self.slices > 1 and "index" not in pattern.parts:
            pattern = Template(f"{group.id}-w{self.place}")
        mine = range(self.place, group.count, self.slices) or range(self.place, self.place + 1)
        run = f"{self.around.run:08x}"
        self.devices[group.name] = [
            Device(self.around, group, Names(run, group.name, index, pattern, group.tags))
            for index in mine
        ]

    def _subscribe(self, device: Device) -> None:
        group = device.group
        if not (group.subscribe or group.request or group.respond):
            return
        device.client.watcher = self.ledger.add_watcher()
        for entry in group.subscribe:
            for text in entry.filters:
                wanted = Filter(
                    device.topic(text),
                    entry.qos,
                    entry.no_local,
                    entry.retain_as_published,
                    _HANDLING[entry.retain_handling],
                )
                self._add_reader(device, wanted, entry.share)
        for response in group.respond:
            qos = response.qos_of(device.index)
            self._add_reader(device, Filter(device.topic(response.filter), qos), None)
        for request in group.request:
            qos = request.qos_of(device.index)
            self._add_reader(device, Filter(device.topic(request.response), qos), None)

    def _add_reader(self, device: Device, wanted: Filter, share: str | None) -> None:
        name = wanted.topic_filter
        if any(each.wanted.topic_filter == name for each in device.subscriptions):
            return
        subscription = Subscription(wanted)
        device.subscriptions.append(subscription)
        if share is None:
            self._readers.add(name, Reader(device, subscription))
            return
        wanted.topic_filter = f"$share/{share}/{name}"  # [MQTT-4.8.2-1]
        known = self._shared.get(wanted.topic_filter)
        if known is not None:
            known.members.append((device, subscription))
            return
        reader = self._shared[wanted.topic_filter] = Reader(device, subscription)
        reader.share = self.ledger.add_share(share)
        self._readers.add(name, reader)

    # Feeds

    def _equip(self, device: Device) -> None:
        group = device.group
        for key, entry in entries_of(group):
            if isinstance(entry, RequestEntry):
                feed = self._requests(device, key, entry)
            else:
                feed = self._messages(device, key, entry)
            if entry.count is not None:
                feed.most_due = entry.count
            feed.paced = entry.interval is not None
            self.entries.setdefault((group.name, key), []).append(feed)
        if group.will is not None:
            self._bind_will(device)
        if group.request or group.respond:
            self._converse(device)

    def _messages(self, device: Device, key: str, entry: PublishEntry) -> Feed:
        topics = [device.topic(entry.topic, {"stream": at}) for at in range(entry.streams)]
        draw: Callable[[float, float], bytes | None]
        if entry.transfer is not None:
            draw = Pieces(entry.transfer, self.around.run).next
        else:
            draw = self._source(device, key, entry).next
        feed = self.open(device, entry, topics, draw, b"")
        if entry.transfer is not None:
            feed.times = entry.transfer.messages
        return feed

    def _requests(self, device: Device, key: str, entry: RequestEntry) -> Feed:
        targets = self.devices[entry.targets]
        count = min(len(targets), MAX_TARGETS)
        first = device.index * count
        chosen = [targets[(first + at) % len(targets)] for at in range(count)]
        topics = [
            device.topic(entry.topic, each.names.as_target(each.group.tags)) for each in chosen
        ]
        response = Properties()
        response.response_topic = device.topic(entry.response)
        draw = self._source(device, key, entry).next
        feed = self.open(device, entry, topics, draw, encode_forwardable(response))
        feed.asks = True
        self.roles.asking[feed.sender.index] = len(topics)
        return feed

    def _converse(self, device: Device) -> None:
        group = device.group
        asking = [
            Asking(
                device.topic(request.response).encode(),
                self.entries[group.name, f"request[{at}]"][-1],
                request.timeout,
            )
            for at, request in enumerate(group.request)
        ]
        answering = [
            Answering(device.topic(response.filter), response.delay, self._opener(device, at))
            for at, response in enumerate(group.respond)
        ]
        dialogue = Dialogue(device, self.roles, asking, answering)
        device.client.inbox = []
        device.answer = dialogue.read
        self.dialogues.append(dialogue)

    def _opener(self, device: Device, at: int) -> Callable[[str], Feed]:
        """What makes a feed for the responses to one Response Topic."""
        entry: RespondEntry = device.group.respond[at]
        source = self._source(device, f"respond[{at}]", entry)

        def opened(topic: str) -> Feed:
            feed = self.open(device, entry, [topic], source.next, b"")
            feed.paced = True
            self.roles.answering.add(feed.sender.index)
            return feed

        return opened

    def _source(self, device: Device, key: str, entry: Content) -> Source:
        group, seed = device.group, self.around.seed
        recipe = self._recipes.get((group.name, key))
        if recipe is None:
            recipe = self._recipes[group.name, key] = Recipe(entry)
        clock = DeviceClock(group.clock, seed, group.name, device.index)
        return Source(recipe, seed, self.around.run, device.names, key, clock)

    def open(
        self,
        device: Device,
        entry: Content,
        topics: list[str],
        draw: Callable[[float, float], bytes | None],
        properties: bytes,
    ) -> Feed:
        """One more sender of a device, with its feed and the tracks of all who are owed it."""
        client = device.client
        qos = entry.qos_of(device.index)
        sender = self.ledger.add_sender(qos, len(topics))
        lane = len(client.senders)
        client.senders.append(sender)
        version5 = client.version == spec.MQTT5
        if version5:
            properties = self._properties(entry) + properties
        frames: list[Frame] = []
        size = entry.fixed_size
        varies = isinstance(entry, RequestEntry | RespondEntry) or (
            isinstance(entry, PublishEntry) and entry.transfer is not None
        )
        if size is not None and not varies:
            filler = self._filler(size)
            for stream, topic in enumerate(topics):
                header = Header(self.around.run, sender.index, stream, qos, 0, 0, 0)
                frames.append(
                    template(header, topic, size, client.version, properties, filler, entry.retain)
                )
        names = [topic.encode() for topic in topics]
        layout = Layout(
            self.around.run,
            [len(name).to_bytes(2, "big") + name for name in names],
            entry.retain,
            properties,
            version5,
        )
        feed = Feed(client, sender, lane, frames, layout, draw, device.group.window)
        feed.keep = device.group.offline == "keep"
        feed.begun_ns, feed.unix_s = self.around.begun_ns, self.around.unix_s
        device.feeds.append(feed)
        for stream, name in enumerate(names):
            self._bind(device, feed, stream, name, entry)
        feed.fan = len(sender.tracks) // sender.streams
        if device.harmed:
            sender.harm()
        return feed

    def _properties(self, entry: Content) -> bytes:
        own = Properties()
        own.user_properties.extend(entry.user_properties.items())
        raw = encode_forwardable(own)
        if entry.expiry is not None:
            seconds = min(int(entry.expiry), 0xFFFFFFFF)
            raw = bytes([spec.MESSAGE_EXPIRY_INTERVAL]) + seconds.to_bytes(4, "big") + raw
        return raw

    def _filler(self, size: int) -> bytes:
        filler = self._fillers.get(size)
        if filler is None:
            filler = self._fillers[size] = padding(self.around.run, size)
        return filler

    # Who is owed what

    def _bind(self, device: Device, feed: Feed, stream: int, topic: bytes, entry: Content) -> None:
        sender = feed.sender
        if entry.retain:
            self._retainers[topic] = self._retainers.get(topic, 0) + 1
        retained = Retained()
        for reader in self._readers.match(topic.decode()):
            qos = min(sender.qos, reader.qos)
            if reader.share is not None:
                whole = reader.share.expect(topic, sender, stream, qos)
                whole.expiring = entry.expiry is not None
            for member, subscription in reader.members:
                if member is device and subscription.wanted.no_local:
                    continue
                watcher = member.watcher
                assert watcher is not None
                track: Track
                if reader.share is not None:
                    track = watcher.expect_shared(topic, reader.share, whole)
                else:
                    track = watcher.expect(topic, sender, stream, qos)
                    self._retain(topic, track, subscription, entry.retain, retained, feed)
                track.expiring = entry.expiry is not None
                subscription.tracks.append(track)
                if not member.up:
                    track.leave()
                if watcher.harmed:
                    track.harm()

    def _retain(
        self,
        topic: bytes,
        track: Track,
        subscription: Subscription,
        retain: bool,
        retained: Retained,
        feed: Feed | None,
    ) -> None:
        """What a subscription is owed of the message that the topic retains."""
        if not retain:
            return
        if subscription.wanted.retain_as_published:
            track.as_published = True
            return
        track.replay = Replay(retained)
        owed = Owed(track.replay, retained, feed, track.stream)
        subscription.replays.append(owed)
        self._owed.append((topic, owed))

    def _bind_will(self, device: Device) -> None:
        will = device.group.will
        assert will is not None
        sender = device.will_sender = self.ledger.add_sender(will.qos, 1)
        topic = device.topic(will.topic).encode()
        if will.retain:
            self._retainers[topic] = self._retainers.get(topic, 0) + 1
        for reader in self._readers.match(topic.decode()):
            if reader.share is not None:
                self.ledger.unverified.add(topic)
                continue
            member, subscription = reader.members[0]
            watcher = member.watcher
            if member is device or watcher is None:
                self.ledger.unverified.add(topic)
                continue
            track = watcher.expect_will(topic, sender, device.wills, min(will.qos, reader.qos))
            self._retain(topic, track, subscription, will.retain, Retained(), None)
            subscription.tracks.append(track)
            track.leave()


class Pieces:
    """A file in pieces, again and again: what stands behind the header of each."""

    def __init__(self, transfer: Transfer, run: int) -> None:
        self._sizes = transfer.payloads
        self._run = run
        self._at = 0

    def next(self, t: float, unix_s: float) -> bytes:
        """The next piece, whenever it is sent."""
        del t, unix_s
        size = self._sizes[self._at]
        self._at = (self._at + 1) % len(self._sizes)
        return filling(self._run, size - HEADER_SIZE)
