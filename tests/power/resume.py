"""One cut: a broker starts on what is left, the clients come back, and nothing may be missing.

Owns: the clients' states at the cut, made from their traces by the clients' own code, and the
verdict. Findings are sorted by what kind of promise was broken.

Must not know: how the files came about.

Invariants: a client knows what it had noted by the cut and nothing later; what it takes up again it
takes up as MQTT wants it, with its identifiers and its half of every exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
from itertools import pairwise
from pathlib import Path
from typing import Final

from mqttd.core.packets import (
    Filter,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from mqttd.core.packets import Record as Packet
from tests.crash.actors import Actor, Keeper, Publisher, Subscriber, Toggler
from tests.crash.wire import Gone, Wire
from tests.power.record import (
    GROUP,
    MEMBERS,
    PUBLISHERS,
    SUBSCRIBERS,
    TOPICS,
    Event,
    Placed,
    Traces,
)

KINDS: Final = (
    "refused",  # the broker doesn't start
    "damaged",  # the file, or the broker said so later
    "session",
    "subscription",
    "lost",
    "doubled",
    "disordered",
    "retained",
    "protocol",
)
LAST: Final = ("t/last/2", "t/last/1")
PATIENCE: Final = 30.0
QUIET: Final = 3.0
"""Seconds without news after which what hasn't come is lost; the last message has come by then."""


class Mute(Wire):
    """Where a client that is only told what it did sends its answers."""

    def __init__(self) -> None:
        """There is nothing behind it."""

    def send(self, packet: Packet) -> None:
        """It was sent long ago."""


class Receiver(Subscriber):
    """Tells when something came."""

    news: asyncio.Event

    def on_packet(self, wire: Wire, packet: object) -> None:
        super().on_packet(wire, packet)
        self.news.set()


class Aftermath:
    """The clients as they stood when the log was `at` bytes long, and a broker on `files`."""

    def __init__(
        self,
        directory: Path,
        durability: str,
        files: dict[str, bytes],
        traces: Traces,
        at: int,
        seed: int,
    ) -> None:
        self.found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.broker = Placed(directory, durability)
        self.chance = random.Random(seed)
        self._wrong: list[str] = []
        self._news = asyncio.Event()
        for name, content in files.items():
            (self.broker.disk / name).write_bytes(content)
        # The map of the log isn't synced ever: it may hold anything.
        if (wal := self.broker.database.with_name("mqttd.db-wal")).exists():
            wal.with_name("mqttd.db-shm").write_bytes(self.chance.randbytes(32768))
        parts = (self.broker, self.chance, self._wrong)
        self.publishers = [Publisher(f"p{n}", *parts) for n in range(PUBLISHERS)]
        self.subscribers = [Receiver(f"s{n}", *parts, TOPICS, {}) for n in range(SUBSCRIBERS)]
        group: dict[str, list[int]] = {}
        self.members = [Receiver(f"m{n}", *parts, GROUP, group) for n in range(MEMBERS)]
        self.keeper = Keeper("keeper", *parts)
        self.toggler = Toggler("toggler", *parts)
        for receiver in self.receivers:
            receiver.news = self._news
            receiver.stays = True
        for publisher in self.publishers:
            publisher.quiet = True
        for actor in self.actors:
            events = [event for event in traces.get(actor.name, ()) if event.at <= at]
            _relive(actor, events)
        self.promised = [
            sum(len(publisher.acknowledged[q]) for publisher in self.publishers) for q in (0, 1)
        ]
        self.sessions = sum(actor.promised for actor in self.actors)

    @property
    def receivers(self) -> list[Receiver]:
        return [*self.subscribers, *self.members]

    @property
    def actors(self) -> list[Actor]:
        return [*self.receivers, *self.publishers, self.keeper, self.toggler]

    async def run(self) -> dict[str, list[str]]:
        """What is wrong, by kind; nothing should be."""
        self._check_file()
        try:
            try:
                await self.broker.start()
            except AssertionError as error:
                await self.broker.ended()
                self.found["refused"].append(str(error))
                return self.found
            try:
                async with asyncio.timeout(4 * PATIENCE):
                    await self._run()
            except Gone:
                self.found["damaged"].append("the broker hung up")
            except (AssertionError, TimeoutError) as error:
                self.found["protocol"].append(f"{type(error).__name__}: {error}")
        finally:
            await self.broker.discard()
        self._check_file()
        return self.found

    async def _run(self) -> None:
        await self._look_at_retained()
        for actor in self.actors:
            if actor.promised:
                await self._take_up(actor)
        self.toggler.ending = True
        if self.toggler.promised:
            wire, _ = await Wire.connect(self.broker.port, self.toggler.name)
            await self.toggler.serve(wire)
            wire.close()
        self.found["subscription"] += self._wrong
        self._wrong.clear()
        receiving = [asyncio.create_task(actor.run()) for actor in self.receivers]
        sending = [asyncio.create_task(actor.run()) for actor in self.publishers]
        try:
            async with asyncio.timeout(PATIENCE):
                for receiver in self.receivers:
                    await receiver.ready.wait()
                await asyncio.gather(*sending)
                await self._publish_last()
            await self._receive_all(receiving)
        except TimeoutError:
            self.found["protocol"].append("clients still wait for acknowledgements")
        except (AssertionError, KeyError) as error:
            self.found["protocol"].append(f"{type(error).__name__}: {error}")
        finally:
            for task in [*receiving, *sending]:
                task.cancel()
            await asyncio.gather(*receiving, *sending, return_exceptions=True)
        self.found["session"] += self._wrong
        self._check_deliveries()
        for actor in self.actors:
            await self._check_subscription(actor)
        if (status := await self.broker.stop()) != 0:
            self.found["damaged"].append(f"SIGTERM: exit status {status}")
        self.found["damaged"] += [f"log: {line}" for line in self.broker.complaints()]

    def _check_file(self) -> None:
        """On a copy: to look is to recover."""
        if not self.broker.database.exists():
            return
        copy = self.broker.disk.with_name("copy")
        shutil.copytree(self.broker.disk, copy)
        try:
            with contextlib.closing(sqlite3.connect(copy / self.broker.database.name)) as db:
                answer = db.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.Error as error:
            answer = [(str(error),)]
        finally:
            shutil.rmtree(copy)
        if answer != [("ok",)]:
            self.found["damaged"].append(f"integrity_check: {answer[:3]}")

    async def _look_at_retained(self) -> None:
        """A stranger reads them, before anybody writes again."""
        keeper = self.keeper
        least = keeper.acknowledged
        due = {
            which
            for which in range(Keeper.TOPICS)
            if least[which] and b"" not in keeper.writes[which][least[which] - 1 :]
        }
        found: dict[int, bytes] = {}
        wire, _ = await Wire.connect(self.broker.port, "probe", clean=True, expiry=0)
        wire.send(Subscribe(1, [Filter("r/+", 0)]))
        wire.send(Pingreq())
        answered = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                while not answered or not due <= found.keys():
                    packet = await wire.receive()
                    answered = answered or isinstance(packet, Pingresp)
                    if isinstance(packet, Publish):
                        found[int(packet.topic[2:])] = packet.payload
        wire.close()
        for which in range(Keeper.TOPICS):
            keeper.judge(which, found.get(which), least[which])
        self.found["retained"] += self._wrong
        self._wrong.clear()

    async def _take_up(self, actor: Actor) -> None:
        """Whether the session is there. If it isn't, the client begins anew."""
        wire, present = await Wire.connect(self.broker.port, actor.name)
        wire.close()
        if not present:
            self.found["session"].append(f"{actor.name}: the session has gone")
            actor.promised = False
            actor.ready.clear()
            if actor is self.toggler:
                self.toggler.there = None

    async def _publish_last(self) -> None:
        """After everything else: whoever has these has all there is."""
        wire, _ = await Wire.connect(self.broker.port, "last", clean=True, expiry=0)
        wire.send(Publish(LAST[0], b"1", 2, False, False, 1))
        while not isinstance(packet := await wire.receive(), Pubcomp):
            assert isinstance(packet, Pubrec), packet
            wire.send(Pubrel(1))
        wire.send(Publish(LAST[1], b"1", 1, False, False, 2))
        packet = await wire.receive()
        assert isinstance(packet, Puback), packet
        wire.close()

    async def _receive_all(self, receiving: list[asyncio.Task[None]]) -> None:
        judged = [*self.subscribers, self.members[0]]
        while True:
            self._news.clear()
            waits = not all(LAST[1] in receiver.handed for receiver in judged)
            if not waits and not any(r._open for r in self.receivers) and not self._missing():
                return
            for task in receiving:
                if task.done():
                    task.result()
            try:
                async with asyncio.timeout(PATIENCE if waits else QUIET):
                    await self._news.wait()
            except TimeoutError:
                return

    def _missing(self) -> list[str]:
        """Acknowledged, before the cut or since, and not handed over to somebody."""
        missing: list[str] = []
        for receiver in [*self.subscribers, self.members[0]]:
            missing += [f"{receiver.name}: {last}" for last in LAST if last not in receiver.handed]
            for publisher in self.publishers:
                for qos in (1, 2):
                    topic = publisher.topic(qos)
                    handed = receiver.handed.get(topic, ())
                    lost = publisher.acknowledged[qos - 1].difference(handed)
                    missing += [f"{receiver.name}: {topic} {number}" for number in sorted(lost)]
        return missing

    def _check_deliveries(self) -> None:
        self.found["lost"] += self._missing()
        for receiver in self.subscribers:
            for topic, numbers in receiver.handed.items():
                first = list(dict.fromkeys(numbers))
                wrong = [b for a, b in pairwise(first) if b < a]
                self.found["disordered"] += [f"{receiver.name}: {topic} {b}" for b in wrong]
        for receiver in [*self.subscribers, self.members[0]]:
            for topic, numbers in receiver.handed.items():
                if topic.endswith("/2") and len(set(numbers)) != len(numbers):
                    twice = sorted({n for n in numbers if numbers.count(n) > 1})
                    self.found["doubled"] += [f"{receiver.name}: {topic} {n}" for n in twice]

    async def _check_subscription(self, actor: Actor) -> None:
        if not actor.promised:
            return
        (wanted,) = actor.filters
        wire, _ = await Wire.connect(self.broker.port, actor.name)
        wire.send(Unsubscribe(50_001, [wanted.topic_filter]))
        while not isinstance(packet := await wire.receive(), Unsuback):
            pass
        wire.close()
        if packet.reasons != [0]:
            self.found["subscription"].append(f"{actor.name}: {wanted.topic_filter} has gone")


def _relive(actor: Actor, events: list[Event]) -> None:
    """Let a new client go through what was noted, without a connection."""
    wire = Mute()
    pending: dict[int, bool] = {}  # the toggler's changes
    for _, sent, packet in events:
        if sent:
            _resend(actor, packet, pending)
        elif isinstance(packet, Suback | Unsuback):
            if isinstance(packet, Suback):
                actor.promised = True
                actor.ready.set()
            if isinstance(actor, Toggler) and packet.packet_id in pending:
                actor.there = pending.pop(packet.packet_id)
        else:
            actor.on_packet(wire, packet)


def _resend(actor: Actor, packet: Packet, pending: dict[int, bool]) -> None:
    if isinstance(packet, Publish):
        actor._last_id = packet.packet_id or actor._last_id
        if isinstance(actor, Publisher):
            if packet.qos and actor.open.get(packet.packet_id) is packet:
                return  # once more
            actor.sent[packet.qos] += 1
            if packet.qos:
                actor.open[packet.packet_id] = packet
        elif isinstance(actor, Keeper):
            if any(packet is known for _, known in actor._open.values()):
                return
            which = int(packet.topic[2:])
            actor.writes[which].append(packet.payload)
            actor._open[packet.packet_id] = which, packet
    elif isinstance(packet, Subscribe | Unsubscribe):
        actor._last_id = packet.packet_id
        if isinstance(actor, Toggler):
            first = packet.filters[0]
            name = first.topic_filter if isinstance(first, Filter) else first
            if name.endswith("/+"):
                actor.there = None
                pending.clear()
                pending[packet.packet_id] = isinstance(packet, Subscribe)
