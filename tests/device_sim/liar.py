"""A broker that lies on command, to verify the verdict: it knows just enough MQTT for a flood.

It runs on a loop and a thread of its own, so that a test can call the command line like a user.
Which lie meets which message is decided by `Lies`: numbers of messages within each topic, counted
from 0 in the order in which they are published; wills count by themselves. It retains messages only
when it is told to, and keeps no sessions.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest

from device_sim.engine.course import Idle
from mqttd.core import spec
from mqttd.core.decode import decode_packet
from mqttd.core.encode import encode_packet
from mqttd.core.framer import Framer
from mqttd.core.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Record,
    Suback,
    Subscribe,
    Will,
)
from mqttd.core.properties import Properties, decode_forwardable, encode_forwardable
from mqttd.core.topics import matches
from tests.net.kit import PATIENCE


class Lies:
    """What to do wrong, by message number within a topic; honest by default."""

    def __init__(self) -> None:
        self.drop: set[int] = set()
        self.double: set[int] = set()
        self.double_with_dup: set[int] = set()
        self.swap_with_next: set[int] = set()
        self.corrupt: set[int] = set()
        self.retain: set[int] = set()
        self.stray: set[int] = set()
        self.ignore: set[int] = set()
        self.refuse: set[int] = set()
        self.hang_up: set[int] = set()
        self.hang_up_on_reader: set[int] = set()
        self.disconnect: set[int] = set()
        self.acknowledge_twice: set[int] = set()
        self.delay: set[int] = set()
        self.drop_will: set[int] = set()
        self.double_will: set[int] = set()
        self.will_for_everybody = False
        self.retains = False
        self.replays_the_first = False
        self.replays_nothing = False
        self.forgets: set[str] = set()
        self.connack = 0
        self.knows_nobody_twice = False
        self.connack_properties: Properties | None = None
        self.suback = -1
        self.silent = False


class _Peer:
    """One client's connection."""

    def __init__(self, liar: "Liar", writer: asyncio.StreamWriter) -> None:
        self.liar = liar
        self.writer = writer
        self.client_id = ""
        self.version = spec.MQTT311
        self.filters: list[tuple[str, int]] = []
        self.next_id = 0
        self.will: Will | None = None

    def send(self, packet: Record) -> None:
        self.writer.write(encode_packet(packet, self.version))

    def deliver(self, message: Publish, dup: bool = False) -> None:
        for topic_filter, qos in self.filters:
            if matches(topic_filter, message.topic):
                copy = Publish(message.topic, message.payload, min(qos, message.qos))
                copy.retain = message.retain
                if self.version == spec.MQTT5:
                    copy.properties = self.handed_on(message.properties)
                if copy.qos:
                    self.next_id = self.next_id % 65535 + 1
                    copy.packet_id = self.next_id
                    copy.dup = dup
                self.send(copy)

    def handed_on(self, raw: bytes) -> bytes:
        """The properties that it passes on: all but those that it forgets."""
        properties = decode_forwardable(raw)
        for name in self.liar.lies.forgets:
            setattr(properties, name, None)
        return encode_forwardable(properties)

    def handle(self, packet: Record) -> None:
        if isinstance(packet, Connect):
            self.client_id = packet.client_id
            self.version = packet.version
            self.will = packet.will
            reason = self.liar.lies.connack
            if self.liar.lies.knows_nobody_twice and self.client_id in self.liar.known:
                reason = 5  # not authorized, in MQTT 3.1.1
            self.liar.known.add(self.client_id)
            if not self.liar.lies.silent:
                self.send(Connack(False, reason, self.liar.lies.connack_properties))
        elif isinstance(packet, Subscribe):
            granted = self.liar.lies.suback
            for each in packet.filters:
                self.filters.append((each.topic_filter, each.qos if granted < 0 else granted))
            codes = [each.qos if granted < 0 else granted for each in packet.filters]
            self.send(Suback(packet.packet_id, codes))
            for each in packet.filters:
                self.liar.replay(self, each.topic_filter, each.qos)
        elif isinstance(packet, Publish):
            self.liar.published(self, packet)
        elif isinstance(packet, Pubrel):
            self.send(Pubcomp(packet.packet_id))
        elif isinstance(packet, Pubrec):
            self.send(Pubrel(packet.packet_id))
        elif isinstance(packet, Pingreq):
            self.liar.pinged.add(self.client_id)
            self.send(Pingresp())
        elif isinstance(packet, Disconnect) and not self.liar.lies.will_for_everybody:
            self.will = None


class Liar:
    """`with Liar(lies) as port:`"""

    def __init__(self, lies: Lies) -> None:
        self.lies = lies
        self.peers: list[_Peer] = []
        self.pinged: set[str] = set()
        self.known: set[str] = set()
        self.counts: dict[str, int] = {}
        self.held: dict[str, Publish] = {}
        self.delayed: dict[str, list[Publish]] = {}
        self.retained: dict[str, list[Publish]] = {}
        self.wills = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._asked = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def idle(self, number: Callable[[], int]) -> Idle:
        """A flood's Idle that counts a poll only when the liar's thread had its turn before it."""
        liar = self

        class Fair(Idle):
            def poll(self) -> int:
                return super().poll() if liar.had_a_turn() else 0

        return Fair(number)

    def had_a_turn(self) -> bool:
        """Whether its loop has gone round since this was last true."""
        if self._asked:
            return False
        self._asked = True
        self._loop.call_soon_threadsafe(setattr, self, "_asked", False)
        return True

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self.peers:
            peer.writer.transport.abort()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(self, writer)
        self.peers.append(peer)
        framer = Framer(1 << 20)
        try:
            while data := await reader.read(65536):
                framer.feed(data)
                while framer.next():
                    peer.handle(
                        decode_packet(
                            framer.first, framer.data, framer.pos, framer.end, peer.version, True
                        )
                    )
        except ConnectionError:
            pass
        finally:
            self.peers.remove(peer)
            writer.close()
            if peer.will is not None:
                self.died(peer.will)

    def published(self, peer: _Peer, message: Publish) -> None:
        lies = self.lies
        number = self.counts.get(message.topic, 0)
        self.counts[message.topic] = number + 1
        if number in lies.hang_up:
            peer.writer.transport.abort()
            return
        if number in lies.disconnect:
            peer.send(Disconnect(spec.QUOTA_EXCEEDED))
            return
        refused = number in lies.refuse
        if number not in lies.ignore:
            reason = spec.QUOTA_EXCEEDED if refused else 0
            for _ in range(2 if number in lies.acknowledge_twice else 1):
                if message.qos == 1:
                    peer.send(Puback(message.packet_id, reason))
                elif message.qos == 2:
                    peer.send(Pubrec(message.packet_id, reason))
        if not refused:
            if message.retain:
                self.retained.setdefault(message.topic, []).append(message)
            self.route(message, number)

    def died(self, will: Will) -> None:
        lies = self.lies
        number = self.wills
        self.wills += 1
        for _ in range((number not in lies.drop_will) + (number in lies.double_will)):
            for peer in self.peers[:]:
                peer.deliver(Publish(will.topic, will.payload, will.qos))

    def replay(self, peer: _Peer, topic_filter: str, qos: int) -> None:
        lies = self.lies
        if not lies.retains or lies.replays_nothing:
            return
        for topic, messages in self.retained.items():
            if matches(topic_filter, topic):
                kept = messages[0 if lies.replays_the_first else -1]
                copy = Publish(topic, kept.payload, min(qos, kept.qos), True)
                if copy.qos:
                    peer.next_id = peer.next_id % 65535 + 1
                    copy.packet_id = peer.next_id
                peer.send(copy)

    def route(self, message: Publish, number: int) -> None:
        lies = self.lies
        if number in lies.delay:
            self.delayed.setdefault(message.topic, []).append(message)
            return
        for earlier in self.delayed.pop(message.topic, []):
            for peer in self.peers[:]:
                peer.deliver(earlier)
        if number in lies.swap_with_next:
            self.held[message.topic] = message
            return
        held = self.held.pop(message.topic, None)
        if number in lies.corrupt:
            damaged = bytearray(message.payload)
            damaged[20] ^= 0x40
            message.payload = bytes(damaged)
        message.retain = number in lies.retain
        for peer in self.peers[:]:
            if number in lies.hang_up_on_reader and peer.filters:
                peer.writer.transport.abort()
                continue
            if number not in lies.drop:
                peer.deliver(message)
            if number in lies.double:
                peer.deliver(message)
            if number in lies.double_with_dup:
                peer.deliver(message, dup=True)
            if number in lies.stray:
                peer.deliver(Publish(message.topic + "x", message.payload, message.qos))
            if held is not None:
                peer.deliver(held)


@contextlib.contextmanager
def lying(lies: Lies) -> Iterator[int]:
    """A liar that no run of this process gives up because its thread has to wait for its turn.

    It lies at once or never, so that a run need not listen for long when everything has come.
    """
    liar = Liar(lies)
    with liar as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr("device_sim.engine.course.Idle", liar.idle)
        patch.setattr("device_sim.engine.course.GRACE_S", 0.1)
        yield port
