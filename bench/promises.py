"""Clients that hold a broker to its acknowledgements: any broker, over the wire, MQTT 3.1.1.

Owns: a connection (`Wire`), publishers and subscribers with their halves of persistent sessions,
the count of what was lost or doubled. A publisher counts a message as acknowledged at PUBACK or
PUBREC, from where on it may forget it. A subscriber notes what it was handed, once for each QoS 2
exchange. A client whose session the broker has lost drops its own half, as it has to, so that
nothing comes twice by the client's doing; a session counts as lost only when SUBACK had come
before.

Shares no code with mqttd, which is one of those that are judged.
"""

import asyncio
import contextlib
import random
import struct
from dataclasses import dataclass, field

from bench.loadgen import connect_packet, packet, subscribe_packet, text

CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK = 2, 3, 4, 5, 6, 7, 9
WINDOW = 16
QOS = (1, 2)


class Gone(Exception):
    """The connection ended, on whichever side, or was refused."""


class Wire:
    """Packets out and in on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, client_id: str) -> tuple["Wire", bool]:
        """A connection whose CONNECT was accepted, and Session Present."""
        try:
            async with asyncio.timeout(5):
                wire = cls(*await asyncio.open_connection("127.0.0.1", port))
        except (OSError, TimeoutError) as error:
            raise Gone from error
        wire.send(connect_packet(client_id, 4, clean=False))
        try:
            async with asyncio.timeout(5):
                kind, _, body = await wire.receive()
            if kind != CONNACK or body[1]:
                raise Gone
        except (Gone, TimeoutError) as error:
            wire.close()
            raise Gone from error
        return wire, bool(body[0] & 1)

    def send(self, data: bytes) -> None:
        if not self._writer.is_closing():  # whoever reads will hear of it
            self._writer.write(data)

    def answer(self, kind: int, packet_id: int) -> None:
        self.send(struct.pack("!BBH", kind << 4 | (2 if kind == PUBREL else 0), 2, packet_id))

    async def receive(self) -> tuple[int, int, bytes]:
        """Type, flags and the rest of the next packet."""
        try:
            first, byte = await self._reader.readexactly(2)
            length, shift = byte & 127, 7
            while byte > 127:
                (byte,) = await self._reader.readexactly(1)
                length |= (byte & 127) << shift
                shift += 7
            return first >> 4, first & 15, await self._reader.readexactly(length)
        except (OSError, EOFError) as error:
            raise Gone from error

    def close(self) -> None:
        self._writer.transport.abort()


@dataclass
class Stage:
    """What the clients of one run share."""

    port: int
    up: asyncio.Event = field(default_factory=asyncio.Event)
    sessions_lost: int = 0
    acknowledged: int = 0  # since the last start


class Client:
    """A client with a persistent session, connected again and again until its task is cancelled."""

    def __init__(self, name: str, stage: Stage, chance: random.Random, topic_filter: str) -> None:
        self.name = name
        self.stage = stage
        self.chance = chance
        self.topic_filter = topic_filter
        self.ready = asyncio.Event()  # SUBACK came: the session has to be there
        self._last_id = 0

    def next_id(self) -> int:
        self._last_id = self._last_id % 60000 + 1
        return self._last_id

    async def run(self) -> None:
        while True:
            await self.stage.up.wait()
            with contextlib.suppress(Gone):
                wire, present = await Wire.connect(self.stage.port, self.name)
                try:
                    await self._meet(wire, present)
                finally:
                    wire.close()
            await self.away()

    async def _meet(self, wire: Wire, present: bool) -> None:
        if not present:
            if self.ready.is_set():
                self.stage.sessions_lost += 1
            self.forget()
            wire.send(subscribe_packet(self.next_id(), [self.topic_filter], 2, 4))
            while (received := await wire.receive())[0] != SUBACK:
                self.on_packet(wire, *received)
            self.ready.set()
        await self.serve(wire)

    async def away(self) -> None:
        await asyncio.sleep(0.01)

    def forget(self) -> None:
        """The session has gone, and with it what this side keeps of it."""
        raise NotImplementedError

    def on_packet(self, wire: Wire, kind: int, flags: int, body: bytes) -> None:
        raise NotImplementedError

    async def serve(self, wire: Wire) -> None:
        """One connection, to its end."""
        while True:
            self.on_packet(wire, *await wire.receive())


class Publisher(Client):
    """Writes numbered messages at QoS 1 and 2, each QoS to a topic of its own."""

    def __init__(self, name: str, stage: Stage, chance: random.Random) -> None:
        super().__init__(name, stage, chance, f"none/{name}")
        self.quiet = False
        self.sent = {1: 0, 2: 0}
        self.acknowledged: dict[int, set[int]] = {1: set(), 2: set()}
        self._open: dict[int, tuple[int, int]] = {}  # packet id → QoS, number
        self._released: dict[int, None] = {}  # PUBREC came, PUBCOMP not yet

    def topic(self, qos: int) -> str:
        return f"t/{self.name}/{qos}"

    @property
    def finished(self) -> bool:
        return self.quiet and not self._open and not self._released

    def forget(self) -> None:
        self._open.clear()
        self._released.clear()

    async def serve(self, wire: Wire) -> None:
        for packet_id, (qos, number) in self._open.items():
            self._send(wire, packet_id, qos, number, True)
        for packet_id in self._released:
            wire.answer(PUBREL, packet_id)
        writer = asyncio.create_task(self._write(wire))
        try:
            await super().serve(wire)
        finally:
            writer.cancel()

    async def _write(self, wire: Wire) -> None:
        while not self.quiet:
            for _ in range(self.chance.randrange(1, 6)):
                if len(self._open) + len(self._released) < WINDOW:
                    qos = self.chance.choice(QOS)
                    self.sent[qos] += 1
                    packet_id = self.next_id()
                    while packet_id in self._open or packet_id in self._released:
                        packet_id = self.next_id()
                    self._open[packet_id] = qos, self.sent[qos]
                    self._send(wire, packet_id, qos, self.sent[qos], False)
            await asyncio.sleep(self.chance.random() * 0.02)

    def _send(self, wire: Wire, packet_id: int, qos: int, number: int, again: bool) -> None:
        body = text(self.topic(qos)) + struct.pack("!H", packet_id) + b"%d" % number
        wire.send(packet(0x30 | qos << 1 | again << 3, body))

    def on_packet(self, wire: Wire, kind: int, flags: int, body: bytes) -> None:
        if kind not in (PUBACK, PUBREC, PUBCOMP):
            return
        packet_id = int.from_bytes(body[:2], "big")
        if kind == PUBCOMP:
            self._released.pop(packet_id, None)
            return
        found = self._open.pop(packet_id, None)
        if found is not None:
            self.acknowledged[found[0]].add(found[1])
            self.stage.acknowledged += 1
        if kind == PUBREC:
            self._released[packet_id] = None
            wire.answer(PUBREL, packet_id)


class Subscriber(Client):
    """Takes everything; `roams`: is away for as long as it is there."""

    def __init__(self, name: str, stage: Stage, chance: random.Random, roams: bool) -> None:
        super().__init__(name, stage, chance, "t/#")
        self.roams = roams
        self.stays = not roams  # from now on
        self.handed: dict[str, list[int]] = {}  # topic → numbers, as they came
        self._open: set[int] = set()  # QoS 2 exchanges

    def forget(self) -> None:
        self._open.clear()

    async def serve(self, wire: Wire) -> None:
        if self.stays:
            await super().serve(wire)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1 + self.chance.random() * 0.6):
                await super().serve(wire)

    async def away(self) -> None:
        await asyncio.sleep(0.01 if self.stays else 0.1 + self.chance.random() * 0.6)

    def on_packet(self, wire: Wire, kind: int, flags: int, body: bytes) -> None:
        if kind == PUBREL:
            packet_id = int.from_bytes(body[:2], "big")
            self._open.discard(packet_id)
            wire.answer(PUBCOMP, packet_id)
            return
        if kind != PUBLISH:
            return
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        qos = flags >> 1 & 3
        packet_id = int.from_bytes(body[end : end + 2], "big") if qos else 0
        if qos < 2 or packet_id not in self._open:
            number = int(body[end + 2 if qos else end :])
            self.handed.setdefault(topic, []).append(number)
        if qos == 1:
            wire.answer(PUBACK, packet_id)
        elif qos == 2:
            self._open.add(packet_id)
            wire.answer(PUBREC, packet_id)


def lost(publishers: list[Publisher], subscribers: list[Subscriber], qos: int) -> int:
    """Acknowledged messages that one of these subscribers wasn't handed."""
    count = 0
    for publisher in publishers:
        missing: set[int] = set()
        for subscriber in subscribers:
            handed = subscriber.handed.get(publisher.topic(qos), ())
            missing |= publisher.acknowledged[qos].difference(handed)
        count += len(missing)
    return count


def doubled(publishers: list[Publisher], subscribers: list[Subscriber], qos: int) -> int:
    """Messages that one of these subscribers was handed more than once."""
    count = 0
    for publisher in publishers:
        twice: set[int] = set()
        for subscriber in subscribers:
            seen: set[int] = set()
            for number in subscriber.handed.get(publisher.topic(qos), ()):
                if number in seen:
                    twice.add(number)
                seen.add(number)
        count += len(twice)
    return count
