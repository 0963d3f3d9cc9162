"""The clients of a crash run: each keeps its half of the session, as MQTT wants it.

A client that was told of a session by SUBACK holds the broker to it: from then on every CONNACK has
to say Session Present. Publishers count a message as acknowledged at PUBACK or PUBREC, since from
there on they may forget it. Subscribers note what they were handed, once for each QoS 2 exchange.
What a client finds wrong it notes in `wrong`, and goes on.
"""

import asyncio
import random

from mqttd.core.packets import (
    Disconnect,
    Filter,
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
from tests.crash.wire import Gone, Process, Wire, pause


class Actor:
    """A client with a session of its own, connected again and again until it is told to end."""

    def __init__(self, name: str, broker: Process, chance: random.Random, wrong: list[str]) -> None:
        self.name = name
        self.broker = broker
        self.chance = chance
        self.wrong = wrong
        self.filters: list[Filter] = []
        self.promised = False  # SUBACK came: the session has to be there
        self.ending = False
        self.stays = False  # comes and goes no longer
        self.start = 0  # the life of the broker that the connection is with
        self.clean = False  # the next connection wants no session that was
        self.ready = asyncio.Event()
        self._last_id = 0

    def next_id(self) -> int:
        self._last_id = self._last_id % 60000 + 1
        return self._last_id

    async def run(self) -> None:
        while not self.ending:
            self.before()
            await self.broker.up.wait()
            clean = self.clean
            self.start = self.broker.starts
            try:
                wire, present = await Wire.connect(self.broker.port, self.name, clean)
            except Gone:
                await asyncio.sleep(0.01)
                continue
            try:
                self.clean = False
                if clean:
                    self.promised = False
                    if present:
                        self.wrong.append(f"{self.name}: a clean start found a session")
                elif self.promised and not present:
                    self.wrong.append(f"{self.name}: the session has gone")
                if not self.promised:
                    await self.subscribe(wire)
                await self.serve(wire)
            except Gone:
                pass
            finally:
                wire.close()

    def before(self) -> None:
        """The next connection is about to be made."""

    async def subscribe(self, wire: Wire) -> None:
        wire.send(Subscribe(self.next_id(), self.filters))
        while not isinstance(packet := await wire.receive(), Suback):
            self.on_packet(wire, packet)
        self.promised = True
        self.ready.set()

    def on_packet(self, wire: Wire, packet: object) -> None:
        raise AssertionError(f"{self.name}: {packet!r}")

    async def serve(self, wire: Wire) -> None:
        """One connection, to its end."""
        raise NotImplementedError


class Publisher(Actor):
    """Writes numbered messages at QoS 0, 1 and 2, each QoS to a topic of its own."""

    WINDOW = 8

    def __init__(self, name: str, broker: Process, chance: random.Random, wrong: list[str]) -> None:
        super().__init__(name, broker, chance, wrong)
        self.filters = [Filter(f"none/{name}", 0)]
        self.sent = [0, 0, 0]
        self.acknowledged: tuple[set[int], set[int]] = (set(), set())  # at QoS 1, at QoS 2
        self.open: dict[int, Publish] = {}  # not acknowledged
        self.released: dict[int, None] = {}  # PUBREC came, PUBCOMP not yet
        self.quiet = False
        self._done = asyncio.Event()

    def topic(self, qos: int) -> str:
        return f"t/{self.name}/{qos}"

    async def serve(self, wire: Wire) -> None:
        # [MQTT-4.4.0-1]
        for packet_id, publish in self.open.items():
            publish.dup = True
            wire.send(publish)
            assert publish.packet_id == packet_id
        for packet_id in self.released:
            wire.send(Pubrel(packet_id))
        writer = asyncio.create_task(self._write(wire))
        try:
            while not self.finished:
                self.on_packet(wire, await wire.receive())
            self.ending = True
            wire.send(Disconnect())
        finally:
            writer.cancel()

    @property
    def finished(self) -> bool:
        return self.quiet and not self.open and not self.released

    async def _write(self, wire: Wire) -> None:
        while not self.quiet:
            for _ in range(self.chance.randrange(1, 6)):
                self._publish(wire)
            await pause(self.chance, 0.02)
        # An answer makes the reader look whether all is done.
        wire.send(Subscribe(self.next_id(), self.filters))

    def _publish(self, wire: Wire) -> None:
        if len(self.open) + len(self.released) >= self.WINDOW:
            return
        qos = self.chance.randrange(3)
        self.sent[qos] += 1
        publish = self.message(qos, self.sent[qos])
        if qos:
            publish.packet_id = self._free_id()
            self.open[publish.packet_id] = publish
        wire.send(publish)

    def message(self, qos: int, number: int) -> Publish:
        return Publish(self.topic(qos), b"%d" % number, qos)

    def _free_id(self) -> int:
        while True:
            packet_id = self.next_id()
            if packet_id not in self.open and packet_id not in self.released:
                return packet_id

    def on_packet(self, wire: Wire, packet: object) -> None:
        if isinstance(packet, Puback):
            publish = self.open.pop(packet.packet_id)
            assert publish.qos == 1
            self.acknowledged[0].add(int(publish.payload))
        elif isinstance(packet, Pubrec):
            known = self.open.pop(packet.packet_id, None)
            if known is not None:
                assert known.qos == 2
                self.acknowledged[1].add(int(known.payload))
                self.released[packet.packet_id] = None
            wire.send(Pubrel(packet.packet_id))
        elif isinstance(packet, Pubcomp):
            self.released.pop(packet.packet_id, None)
        elif not isinstance(packet, Suback):
            super().on_packet(wire, packet)


class Keeper(Actor):
    """Writes retained messages at QoS 1, now and then an empty one; one write at a time a topic."""

    TOPICS = 4

    def __init__(self, name: str, broker: Process, chance: random.Random, wrong: list[str]) -> None:
        super().__init__(name, broker, chance, wrong)
        self.filters = [Filter(f"none/{name}", 0)]
        self.writes: list[list[bytes]] = [[] for _ in range(self.TOPICS)]
        self.acknowledged = [0] * self.TOPICS  # writes, the first so many
        self._open: dict[int, tuple[int, Publish]] = {}

    async def serve(self, wire: Wire) -> None:
        for _, publish in self._open.values():
            publish.dup = True
            wire.send(publish)
        while not self.ending:
            if not self._open:
                for which in range(self.TOPICS):
                    self._write(wire, which)
            self.on_packet(wire, await wire.receive())
            await pause(self.chance, 0.005)

    def _write(self, wire: Wire, which: int) -> None:
        writes = self.writes[which]
        number = len(writes) + 1
        writes.append(b"" if self.chance.random() < 0.2 else b"%d" % number)
        publish = Publish(f"r/{which}", writes[-1], 1, True, False, self.next_id())
        self._open[publish.packet_id] = which, publish
        wire.send(publish)

    def on_packet(self, wire: Wire, packet: object) -> None:
        assert isinstance(packet, Puback | Suback), packet
        if isinstance(packet, Puback):
            which, _ = self._open.pop(packet.packet_id)
            self.acknowledged[which] = len(self.writes[which])

    def judge(self, which: int, value: bytes | None, least: int) -> None:
        """`value` was found after the first `least` writes had been acknowledged."""
        later = self.writes[which][max(least - 1, 0) :]
        if value is None:
            if least and b"" not in later:
                self.wrong.append(f"r/{which}: lost, {least} writes were acknowledged")
        elif value not in later:
            self.wrong.append(f"r/{which}: {value!r} is older than write {least}")


class Subscriber(Actor):
    """Receives; stays for a while, leaves for a while."""

    def __init__(
        self,
        name: str,
        broker: Process,
        chance: random.Random,
        wrong: list[str],
        topic_filter: str,
        handed: dict[str, list[int]],
    ) -> None:
        super().__init__(name, broker, chance, wrong)
        self.filters = [Filter(topic_filter, 2)]
        self.handed = handed  # topic → numbers, as they came; a group has one for all its members
        self._open: set[int] = set()  # QoS 2 exchanges

    async def serve(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.chance.random() * 2
        while not self.ending:
            timeout = None if self.stays else until
            try:
                async with asyncio.timeout_at(timeout):
                    packet = await wire.receive()
            except TimeoutError:
                if self.stays:
                    continue
                break
            self.on_packet(wire, packet)
            if not self.stays and self.chance.random() < 0.05:
                await pause(self.chance, 0.02)  # so that something is under way at a kill
        if self.chance.random() < 0.5:
            wire.send(Disconnect())
            await asyncio.sleep(0)
        wire.close()
        if not self.stays:
            await pause(self.chance, 0.5)

    def on_packet(self, wire: Wire, packet: object) -> None:
        if isinstance(packet, Publish):
            if packet.qos == 2:
                if packet.packet_id not in self._open:
                    self._open.add(packet.packet_id)
                    self._hand(packet)
                self.answer(wire, Pubrec(packet.packet_id))
                return
            self._hand(packet)
            if packet.qos == 1:
                self.answer(wire, Puback(packet.packet_id))
        elif isinstance(packet, Pubrel):
            self._open.discard(packet.packet_id)
            self.answer(wire, Pubcomp(packet.packet_id))
        else:
            super().on_packet(wire, packet)

    def answer(self, wire: Wire, packet: Puback | Pubrec | Pubcomp) -> None:
        wire.send(packet)

    def _hand(self, packet: Publish) -> None:
        self.handed.setdefault(packet.topic, []).append(int(packet.payload))


class Toggler(Actor):
    """Subscribes and unsubscribes; what was acknowledged last has to hold."""

    def __init__(self, name: str, broker: Process, chance: random.Random, wrong: list[str]) -> None:
        super().__init__(name, broker, chance, wrong)
        self.filters = [Filter(f"none/{name}", 0)]
        self.there: bool | None = False  # None: a change is under way
        self.changes = 0

    async def serve(self, wire: Wire) -> None:
        topic_filter = f"none/{self.name}/+"
        before = self.there
        self.there = None
        wire.send(Unsubscribe(self.next_id(), [topic_filter]))
        found = await self._answer(wire) == 0
        self.there = False
        if before is not None and found is not before:
            self.wrong.append(
                f"{self.name}: subscription there is {found}, {before} was acknowledged"
            )
        while not self.ending:
            wanted = not self.there
            self.there = None
            packet_id = self.next_id()
            if wanted:
                wire.send(Subscribe(packet_id, [Filter(topic_filter, 1)]))
            else:
                wire.send(Unsubscribe(packet_id, [topic_filter]))
            await self._answer(wire)
            self.there = wanted
            self.changes += 1
            await pause(self.chance, 0.05)

    async def _answer(self, wire: Wire) -> int:
        packet = await wire.receive()
        assert isinstance(packet, Suback | Unsuback), packet
        return packet.reasons[0]
