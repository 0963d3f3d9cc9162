"""One recorded run: real clients, a broker under the shim, and when each client knew what.

Owns: the traces. Each client notes every packet that it sent or received together with the length
that the log had *before* it acted on it. The broker acknowledges after its sync, so a promise that
was noted at length L must survive a cut at any point from L on; and nothing that a client did on
account of a packet can stand in the log before the length noted with it. So the notes up to a
cut are a state that the client may well be in when the power goes.

Must not know: which cuts there will be, what a restart has to show.

Invariants: every change of the files is in the log: wherever the broker ended by itself, what the
log leads to is compared with the real files. After a kill it may lack the last change, which is
then taken over from the real file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mqttd.core.packets import Disconnect, Puback, Pubcomp, Publish, Pubrec, Suback, Unsuback
from mqttd.core.packets import Record as Packet
from tests.crash.actors import Actor, Keeper, Publisher, Subscriber, Toggler
from tests.crash.wire import PATIENCE, Gone, Process, Wire
from tests.power.rebuild import Disk, Kind, Record, decode, encode
from tests.power.shim import Shim

PUBLISHERS = 3
SUBSCRIBERS = 3
MEMBERS = 2
TOPICS = "t/#"
GROUP = "$share/g/t/#"


class Event(NamedTuple):
    """A packet, and the log's length when it was known, or about to be sent."""

    at: int
    sent: bool
    packet: Packet


Traces = dict[str, list[Event]]


class Placed(Process):
    """`mqttd run` whose database has a directory for itself, which can be watched or rebuilt."""

    def __init__(self, directory: Path, durability: str) -> None:
        super().__init__(directory, durability)
        self.disk = directory / "disk"
        self.disk.mkdir(exist_ok=True)
        self.database = self.disk / "mqttd.db"
        tree = json.loads(self._config.read_text())
        tree["storage"]["path"] = str(self.database)
        tree["control"] = {"path": "off"}  # of the directory every file is read
        self._config.write_text(json.dumps(tree))

    async def ended(self) -> int:
        """The exit status of a broker that ends by itself."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    def complaints(self) -> list[str]:
        """What it logged as an error, or said without logging it."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [
            line
            for line in lines
            if not line.startswith("{") or json.loads(line)["level"] in ("error", "critical")
        ]


class Recorded(Placed):
    """The same under the shim."""

    def __init__(self, directory: Path, durability: str) -> None:
        super().__init__(directory, durability)
        self.shim = Shim(directory, self.disk)
        self.traces: Traces = {}

    def logged(self) -> int:
        return os.stat(self.shim.log).st_size

    async def start(self) -> None:
        with _environment(self.shim.environment):
            await super().start()

    def compare(self) -> dict[str, tuple[bytes | None, bytes | None]]:
        """Files that differ from what the log leads to: rebuilt, real."""
        disk = Disk()
        for record in decode(self.shim.log.read_bytes())[0]:
            disk.apply(record)
        rebuilt = disk.after_cut("kept")
        real = {
            file.name: file.read_bytes()
            for file in self.disk.iterdir()
            if not file.name.endswith("-shm")
        }
        names = rebuilt.keys() | real.keys()
        both = {name: (rebuilt.get(name), real.get(name)) for name in names}
        return {name: pair for name, pair in both.items() if pair[0] != pair[1]}

    def mend(self) -> None:
        """After a kill: no torn record at the end, and the one change that may have none."""
        _, ends = decode(self.shim.log.read_bytes())
        os.truncate(self.shim.log, ends[-1] if ends else 0)
        numbers = {file.name: file.stat().st_ino for file in self.disk.iterdir()}
        for name, (rebuilt, real) in self.compare().items():
            assert rebuilt is not None, f"{name}: was made at the instant of the kill"
            assert real is not None, f"{name}: was removed at the instant of the kill"
            at = next((i for i, (a, b) in enumerate(zip(rebuilt, real, strict=False)) if a != b), 0)
            at = at or min(len(rebuilt), len(real))
            with self.shim.log.open("ab") as log:
                log.write(encode(Record(Kind.TRUNCATED, numbers[name], length=len(real))))
                log.write(
                    encode(Record(Kind.WRITTEN, numbers[name], "", at, len(real) - at, real[at:]))
                )
            assert name not in self.compare()


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Processes started inside inherit `more`."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Tapped(Wire):
    """A connection that was made, with a trace from here on."""

    def __init__(self, wire: Wire, broker: Recorded, trace: list[Event]) -> None:
        super().__init__(wire._reader, wire._writer)
        self._framer = wire._framer
        self._broker = broker
        self._trace = trace

    def send(self, packet: Packet) -> None:
        self._trace.append(Event(self._broker.logged(), True, packet))
        super().send(packet)

    async def receive(self) -> Packet:
        packet = await super().receive()
        if isinstance(packet, Disconnect):
            raise Gone
        self._trace.append(Event(self._broker.logged(), False, packet))
        return packet


class Padded(Tapped):
    """Some messages are large, so that the log of the database fills and begins again: a number
    that is followed by spaces is still that number."""

    def __init__(
        self,
        wire: Wire,
        broker: Recorded,
        trace: list[Event],
        chance: random.Random,
        retained: bool,
    ) -> None:
        super().__init__(wire, broker, trace)
        self._chance = chance
        self._share = 0.5 if retained else 0.1  # which replace each other: no queue grows

    def send(self, packet: Packet) -> None:
        if (
            isinstance(packet, Publish)
            and packet.payload
            and not packet.dup
            and self._chance.random() < self._share
        ):
            packet.payload += b" " * self._chance.randrange(200_000)
        super().send(packet)


class Traced(Actor):
    """What every recorded actor does beside its own work."""

    def tap(self, wire: Wire) -> Wire:
        broker = self.broker
        assert isinstance(broker, Recorded)
        trace = broker.traces.setdefault(self.name, [])
        if isinstance(self, Publisher | Keeper):
            return Padded(wire, broker, trace, self.chance, isinstance(self, Keeper))
        return Tapped(wire, broker, trace)

    async def subscribe(self, wire: Wire) -> None:
        await super().subscribe(self.tap(wire))

    async def serve(self, wire: Wire) -> None:
        await super().serve(self.tap(wire))


class TracedPublisher(Traced, Publisher):
    pass


class TracedKeeper(Traced, Keeper):
    pass


class TracedSubscriber(Traced, Subscriber):
    pass


class TracedToggler(Traced, Toggler):
    pass


class Recording:
    """A run of three lives of a broker: one ends well, one by a kill, and the last is cut."""

    def __init__(
        self, directory: Path, durability: str, seed: int, traffic: float, full_log: bool = False
    ) -> None:
        self.chance = random.Random(seed)
        self.traffic = traffic  # seconds of each life, on average
        self.full_log = full_log  # one life goes on until the database's log begins again
        self.wrong: list[str] = []
        self.lives: list[int] = []  # the length of the log at the end of each
        self.broker = Recorded(directory, durability)
        parts = [
            (self.broker, random.Random(self.chance.random()), self.wrong)
            for _ in range(PUBLISHERS + SUBSCRIBERS + MEMBERS + 2)
        ]
        self.publishers = [TracedPublisher(f"p{n}", *parts.pop()) for n in range(PUBLISHERS)]
        group: dict[str, list[int]] = {}
        self.receivers = [
            *(TracedSubscriber(f"s{n}", *parts.pop(), TOPICS, {}) for n in range(SUBSCRIBERS)),
            *(TracedSubscriber(f"m{n}", *parts.pop(), GROUP, group) for n in range(MEMBERS)),
        ]
        self.keeper = TracedKeeper("keeper", *parts.pop())
        self.toggler = TracedToggler("toggler", *parts.pop())

    @property
    def actors(self) -> list[Actor]:
        return [*self.receivers, *self.publishers, self.keeper, self.toggler]

    @property
    def traces(self) -> Traces:
        return self.broker.traces

    def log(self) -> bytes:
        return self.broker.shim.log.read_bytes()

    def promises(self) -> list[int]:
        """The lengths of the log at which something was acknowledged."""
        kinds = Puback | Pubrec | Pubcomp | Suback | Unsuback
        senders = [*self.publishers, self.keeper, self.toggler]
        return [
            event.at
            for sender in senders
            for event in self.traces.get(sender.name, ())
            if not event.sent and isinstance(event.packet, kinds)
        ]

    async def run(self) -> None:
        try:
            await self.broker.start()
            await self._run()
            self.broker.mend()
        finally:
            await self.broker.discard()

    async def _run(self) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            for actors in (self.receivers, [*self.publishers, self.keeper, self.toggler]):
                tasks += [asyncio.create_task(actor.run()) for actor in actors]
                async with asyncio.timeout(PATIENCE):
                    for actor in actors:
                        await actor.ready.wait()  # nobody publishes before all receivers are there
            if self.full_log:
                await self._fill(tasks)
            ends = [self._end_well, self._kill]
            self.chance.shuffle(ends)
            for end in ends:
                await self._some_time(tasks)
                self.lives.append(self.broker.logged())
                await end()
                await self.broker.start()
            await self._some_time(tasks)
            await self.broker.kill()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_well(self) -> None:
        if (status := await self.broker.stop()) != 0:
            self.wrong.append(f"SIGTERM: exit status {status}")
        assert not self.broker.compare(), "the shim has missed something"

    async def _kill(self) -> None:
        await self.broker.kill()
        self.broker.mend()

    async def _fill(self, tasks: list[asyncio.Task[None]]) -> None:
        """Until a checkpoint wrote to the database itself, if that comes in good time."""
        began = self.broker.database.stat().st_mtime_ns
        until = asyncio.get_running_loop().time() + PATIENCE
        while asyncio.get_running_loop().time() < until:
            if self.broker.database.stat().st_mtime_ns != began:
                return
            await self._go_on(tasks, 0.05)

    async def _some_time(self, tasks: list[asyncio.Task[None]]) -> None:
        # A slow disk leaves more under way between a write and its sync.
        self.broker.shim.faults.set("fsync_delay", self.chance.choice((0, 0, 2, 10)))
        await self._go_on(tasks, self.traffic * (0.5 + self.chance.random()))

    async def _go_on(self, tasks: list[asyncio.Task[None]], seconds: float) -> None:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise AssertionError("a client ended before its time")
